// Makes the functions' archive whenever osls packages or deploys, so that no former code is deployed.
"use strict";

const { execFileSync } = require("node:child_process");
const { existsSync } = require("node:fs");

const PYTHON = ".venv/bin/python";

class Bundle {
  constructor() {
    this.hooks = { "before:package:initialize": () => this.make() };
  }

  make() {
    if (!existsSync(PYTHON)) {
      throw new Error(`${PYTHON} is missing: run "make setup" first`);
    }
    execFileSync(PYTHON, ["-m", "infra.bundle", "build/functions.zip"], { stdio: "inherit" });
  }
}

module.exports = Bundle;
