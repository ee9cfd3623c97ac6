# make demo   the main job, in a real sandbox
# make test   all checks and tests
# Both install what they need: see packaging/bootstrap. VENV=dir puts the environment elsewhere, PYTHON=path picks the interpreter.

VENV ?= .venv
PYTHON ?=
ROOMS := $(wildcard host ledger egress sandbox supervisor mesh mcpd profiles)
SOURCES := $(sort $(shell find $(ROOMS) -type f ! -name '*.pyc')) packaging/osmoda-egress packaging/osmoda-ledger packaging/osmoda-sandbox packaging/osmoda-watch pyproject.toml README.md
BOOTSTRAP = @VENV='$(VENV)' PYTHON='$(PYTHON)' packaging/bootstrap
# The lock holds for build requirements too. An environment variable, since an older pip reads no other way into an isolated build.
PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT='$(CURDIR)/requirements-ci.txt' '$(VENV)/bin/python3' -m pip -qq

.PHONY: demo test bench peers install lock apparmor clean demo-system test-system FORCE
.DELETE_ON_ERROR:
.SUFFIXES:
.NOTPARALLEL:

demo: demo-system $(VENV)/.stamp-installed
	@packaging/demo '$(VENV)/bin'

test: test-system $(VENV)/.stamp-installed $(VENV)/.stamp-tox
	@$(if $(ARGS),,packaging/lanes '$(VENV)/beside.log') '$(VENV)/bin/tox' run --workdir '$(VENV)/tox' \
		--installpkg "$$(echo '$(VENV)'/wheel/osmoda-*.whl)" $(if $(ARGS),-e py -- $(ARGS))

bench: test-system $(VENV)/.stamp-installed $(VENV)/.stamp-tox
	@'$(VENV)/bin/tox' run --workdir '$(VENV)/tox' --installpkg "$$(echo '$(VENV)'/wheel/osmoda-*.whl)" -e bench -- --install-peers --peers '$(abspath $(VENV))/peers' $(ARGS)

# The attack battery in other sandboxes, into docs/peers.md. As root; the attacker is an ordinary user.
peers: test-system $(VENV)/.stamp-installed $(VENV)/.stamp-tox
	@'$(VENV)/bin/tox' run --workdir '$(VENV)/tox' --installpkg "$$(echo '$(VENV)'/wheel/osmoda-*.whl)" -e peers -- --install --peers '$(abspath $(VENV))/peers' $(ARGS)

install: demo-system $(VENV)/.stamp-installed

demo-system:
	$(BOOTSTRAP) run

test-system:
	$(BOOTSTRAP) test

# Rewritten only when a source was added or removed, so that this too makes a new wheel.
$(VENV)/.stamp-sources: FORCE
	@echo '$(SOURCES)' | cmp -s - '$@' || echo '$(SOURCES)' >'$@'

$(VENV)/.stamp-wheel: $(SOURCES) $(VENV)/.stamp-sources requirements-ci.txt
	@echo '» building the wheel'
	@rm -rf build '$(VENV)/wheel'
	@$(PIP) wheel --no-deps --wheel-dir '$(VENV)/wheel' .
	@touch '$@'

$(VENV)/.stamp-installed: $(VENV)/.stamp-wheel
	@echo '» installing it with the locked requirements into $(VENV)'
	@$(PIP) install '$(VENV)'/wheel/osmoda-*.whl
	@$(PIP) install --force-reinstall --no-deps '$(VENV)'/wheel/osmoda-*.whl
	@touch '$@'

$(VENV)/.stamp-tox: requirements-ci.txt tox.ini
	@echo '» installing tox'
	@rm -rf '$(VENV)/tox'
	@$(PIP) install tox
	@touch '$@'

# Newest releases within the ranges of pyproject.toml, as one interpreter resolves them.
lock: demo-system
	@packaging/lock '$(VENV)/bin/python3' >requirements-ci.txt.new
	@mv requirements-ci.txt.new requirements-ci.txt

# For ordinary users on systems where AppArmor restricts user namespaces (docs/troubleshooting.md). As root.
apparmor: $(VENV)/.stamp-installed
	@packaging/apparmor/install '$(VENV)/bin/osmoda-sandbox'

clean:
	rm -rf build '$(VENV)' .tox
