# Everyday tasks; each calls a script, so that nothing needs just. `just` lists them.

_default:
    @just --list --unsorted

# Check style, types, import rules, the template and generated files
check:
    scripts/test checks

# Run the unit tests; options go to pytest
unit *options:
    scripts/test unit -- {{options}}

# Run the tests on a real PostgreSQL; options go to pytest
integration *options:
    scripts/test integration -- {{options}}

# Run every check and test
test:
    scripts/test

# Format the code, and mend what ruff can mend
format: _environment
    .acp/venvs/dev/bin/ruff check --fix .
    .acp/venvs/dev/bin/ruff format .

# Bring generated files up to date
generate: _environment
    .acp/venvs/dev/bin/python scripts/generate

# Bring the local cloud up
up *options:
    scripts/acp up {{options}}

# Stop the local cloud and clear its state
down:
    scripts/acp down

# Show the whole pipeline at work
demo:
    scripts/demo

# Make a new consumer's skeleton
new-consumer name topic:
    scripts/acp new consumer {{name}} --topic {{topic}}

# Compile the locks anew; -U takes newer versions
lock *options:
    scripts/lock {{options}}

_environment:
    @bash -c '. scripts/lib/environment.sh; environment dev requirements/dev.txt'
