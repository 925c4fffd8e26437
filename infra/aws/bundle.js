// Plugin of osls: before it packages or deploys, checks the parameters and builds the functions' archive, so that the
// current code is deployed.
"use strict";

const { execFileSync } = require("node:child_process");
const { existsSync } = require("node:fs");

const PYTHON = ".venv/bin/python";

class Bundle {
  constructor(serverless) {
    this.serverless = serverless;
    this.hooks = { "before:package:initialize": () => this.build() };
  }

  build() {
    if (!existsSync(PYTHON)) {
      throw new Error(`${PYTHON} is missing: run "make setup" first`);
    }
    const declared = Object.entries(this.serverless.service.resources.Parameters);
    const input = JSON.stringify(Object.fromEntries(declared.map(([name, { Default }]) => [name, Default])));
    execFileSync(PYTHON, ["-m", "infra.aws.check_parameters"], { input, stdio: ["pipe", "inherit", "inherit"] });
    execFileSync(PYTHON, ["-m", "infra.aws.lambda_archive", "build/functions.zip"], { stdio: "inherit" });
  }
}

module.exports = Bundle;
