# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Doors to what developers run. Each sets up what is missing, in .venv.

.PHONY: lint unit test test-all coverage mutants quickstart docs

lint:  ## ruff, mypy, clang-format
	bash tests/lint.sh

unit:  ## tests that need no model, and those of the docs; half a minute once .venv is made
	bash tests/unit.sh

test:  ## C++ under sanitizers, lint, and all tests but most of those that start engines
	bash tests/run.sh

test-all:  ## the same with all tests that start engines, but the slow ones
	bash tests/run.sh --all

coverage:  ## all Python tests, measured: which lines no test and no engine of a test runs
	bash tests/coverage.sh

mutants:  ## removes each guard of fetching and sharing in turn; a test must notice
	bash tests/mutants.sh

quickstart:  ## serves the demo model on two ranks, asks it, stops
	bash examples/quickstart.sh

docs:  ## the documentation site, in build/site; a warning is an error
	bash docs/site/build.sh
