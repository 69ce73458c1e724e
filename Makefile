# Lyrebird. `make help` lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
AREA ?=
DATA ?=
PRESET ?=

.PHONY: help install run up down status test test-long unit lint format bench docs analytics changed clean constraints

help: ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Make .venv and install the pinned dependencies (PYTHON=… picks the interpreter)

.venv/.installed: pyproject.toml constraints.txt infra/install.sh
	@infra/install.sh

run: install ## Start everything and run the whole chain through Airflow (DATA=FOLDER adds real data)
	@$(BIN)/lyrebird run $(if $(DATA),--data "$(DATA)")

up: install ## Start the servers and the web pages
	@$(BIN)/lyrebird up

down: install ## Stop them; nothing is lost
	@$(BIN)/lyrebird down

status: install ## How each server is doing
	@$(BIN)/lyrebird status

test: install ## All tests but the long ones, against real servers in a temporary folder
	@$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: install ## All tests; what they came to is kept in docs/results/long.md
	@rm -f .pytest_cache/long.xml; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --junitxml=.pytest_cache/long.xml; code=$$?; \
	$(BIN)/python -m infra.evidence.suite .pytest_cache/long.xml docs/results/long.md && exit $$code

unit: install ## The fast tests, without servers, in under a minute
	@$(BIN)/python -m pytest tests/unit -n 2

lint: install ## ruff, mypy, sqlfluff, import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint dbt_project/models dbt_project/analyses --processes 2

format: install ## Let ruff and sqlfluff put the code into shape
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/sqlfluff fix dbt_project/models dbt_project/analyses

bench: install ## Measure against peers (AREA=…); writes docs/benchmarks
	@cd tests && ../$(BIN)/python -m benchmarks $(AREA)

reproduce-%: install ## Train a task on files of yours and score it once on test (DATA=FOLDER); goes on where it ended
	@$(BIN)/python -m infra.evidence.reproduce $* --data "$(DATA)" $(if $(PRESET),--preset $(PRESET))

docs: install ## dbt docs, data dictionary and diagrams, from the running stack
	@$(BIN)/lyrebird docs
	@$(BIN)/python -m infra.reference.dictionary

analytics: install ## Ask the questions of dbt_project/analyses; the answers go to docs/analytics
	@$(BIN)/python -m infra.reference.analyses

changed: install ## Build the models that differ from the published ones, and their children, in schemas of your own
	@eval "$$($(BIN)/lyrebird env)" && cd dbt_project && dbt build --select state:modified+ --state "$${DBT_DEFER_STATE:?nothing is published yet, run make run}"

constraints: install ## Write constraints.txt anew from what is installed
	@$(BIN)/python -m pip list --format=freeze | grep -viE '^(lyrebird|pip|setuptools|wheel)==' | sed 's/+cpu//' | sort -f > constraints.new
	@(head -1 constraints.txt; cat constraints.new) > constraints.tmp && mv constraints.tmp constraints.txt && rm constraints.new

clean: ## Stop the stack; remove the environment and all state (asks first)
	@printf 'This removes .venv and the state in .lyrebird with all its data. Go on? [y/N] '; read -r answer; [ "$$answer" = y ]
	@[ ! -x $(BIN)/lyrebird ] || $(BIN)/lyrebird down
	@rm -rf .venv .lyrebird
