"""The AWS Lambda functions, their deployment's checks and archive, and the CloudFormation that they live in."""
