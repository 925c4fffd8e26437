// Whenever osls packages or deploys: checks the parameters, and makes the functions' archive, so that no former code is
// deployed.
"use strict";

const { execFileSync } = require("node:child_process");
const { existsSync } = require("node:fs");

const PYTHON = ".venv/bin/python";

class Bundle {
  constructor(serverless) {
    this.serverless = serverless;
    this.hooks = { "before:package:initialize": () => this.make() };
  }

  make() {
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
