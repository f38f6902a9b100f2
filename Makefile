# The front door. Each target is a script in tools/, where the work is done and explained.
#
#   PG=18             major version of PostgreSQL (tools/versions has a file for each)
#   PG_SOURCE=path    a source tarball to use instead of a download

PG ?= 18
PG_SOURCE ?=
TESTS ?=
export PG PG_SOURCE TESTS

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target what; do printf 'make %-17s %s\n' "$$target" "$$what"; done
	@echo
	@echo 'PG=18 chooses the major version, PG_SOURCE=path a PostgreSQL source tarball.'

.PHONY: bench bench-quick bench-scale quickstart check check-versions check-everything check-stock check-unit check-regress check-tap check-deb check-peer check-incremental check-lease soak fuzz lint build install deb clean check-attacks check-model check-cassert memcheck miri check-server check-azure
quickstart: ## build everything, back up a cluster under load, verify and start the copy
	@tools/build.sh
	@tools/quickstart.sh

check: ## build everything and run every test
	@tools/check.sh

check-versions: ## all of it on 18; what differs between versions and routes on Debian's own 15, and on 15 and 17
	@tools/check-versions.sh

check-everything: ## every test on each of these
	@EVERYTHING=1 tools/check-versions.sh

check-stock: ## the same on Debian's own server, by the SQL procedures: PG=15
	@PPB_STOCK=1 tools/check.sh

check-unit: ## the tests that need no server
	@tools/check.sh unit

check-model: ## models of what the server's processes share, in every order
	@tools/check-model.sh

check-regress: ## the SQL tests
	@tools/check.sh regress

check-tap: ## the TAP tests, or some: TESTS='tests/t/001*.pl'
	@tools/check.sh tap

check-peer: ## PostgreSQL's own tests of pg_basebackup and its peers, with our client in pg_basebackup's place
	@tools/check.sh peer

SUITES ?=
check-server: ## PostgreSQL's own tests of the server, unpatched and patched with the library; an hour: SUITES='regress recovery'
	@SUITES='$(SUITES)' tools/check.sh server

ROUNDS ?= 20
SEED ?=
check-incremental: ## chains of increments of a busy cluster, at random: ROUNDS=20 SEED=number
	@ROUNDS='$(ROUNDS)' SEED='$(SEED)' TESTS=tests/t/072_incremental_rounds.pl tools/check.sh tap

CENTRAL = $(patsubst %,tests/t/%*.pl,002 003 004 005 013 016 017 035 040_lease 041_lease_end 050 070)
check-cassert: ## the tests of the commands on a server with assertions, or TESTS='...'; DISCARD_CACHES=1 without its caches
	@PPB_SERVER=debug TESTS='$(or $(TESTS),$(CENTRAL))' tools/check.sh tap

memcheck: ## backups by each way under valgrind: by commands on 18, by the SQL procedures on Debian's own 15
	@PPB_VALGRIND=1 PPB_SERVER=debug PG=18 tools/check.sh memcheck
	@PPB_VALGRIND=1 PPB_STOCK=1 PG=15 tools/check.sh memcheck

miri: ## the unit tests of protocol and pages under Miri, of a nightly compiler
	@tools/miri.sh

MINUTES ?= 10
soak: ## backups with faults at random, each copy started: MINUTES=10 SEED=number FAULT=pattern TLS=30, PPB_STOCK=1 PG=15 too
	@MINUTES='$(MINUTES)' SEED='$(SEED)' FAULT='$(FAULT)' TLS='$(TLS)' TESTS=tests/soak/soak.pl tools/check.sh tap

check-lease: ## backups with --lease over a network that loses connections, at random: ROUNDS=20 SEED=number
	@ROUNDS='$(ROUNDS)' SEED='$(SEED)' TESTS='tests/t/044*.pl tests/t/045*.pl' tools/check.sh tap

check-attacks: ## the tests of attacks, longer: CYCLES=10000 backups that are abandoned, ENTRIES=1000000 in a list, SWAPS=3000
	@CYCLES='$(or $(CYCLES),10000)' ENTRIES='$(or $(ENTRIES),1000000)' SWAPS='$(or $(SWAPS),3000)' SEED='$(SEED)' \
		TESTS='tests/t/100*.pl tests/t/101*.pl tests/t/102*.pl' tools/check.sh tap

check-azure: ## backups to Azure's Blob Storage, on its own emulator, which npm installs
	@TESTS=tests/azure/azure.pl tools/check.sh tap

check-deb: ## as root: install the packages, back up a server, remove them again
	@PPB_CHECK=1 tools/deb.sh "$(PG_CONFIG)"
	@tests/deb.sh

bench: ## pg_parallel_basebackup against pg_basebackup, cp and pgBackRest, on 5 GB of data
	@tools/bench.sh

bench-quick: ## the same on less, in a few minutes
	@tools/bench.sh --quick

bench-scale: ## how time and memory grow: a million files, 1,000 tablespaces, 10,000 databases
	@tools/bench.sh --scale

fuzz: ## what others have written is read, as it may be damaged: MINUTES=10 for each target, or TARGETS='manifest index'
	@MINUTES='$(MINUTES)' TARGETS='$(TARGETS)' tools/fuzz.sh

lint: ## rustfmt, clippy and cargo-deny, without complaints
	@tools/lint.sh

build: ## the patched server, the extension and the client, in build/pg18
	@tools/build.sh

install: ## the extension alone, into a server of yours: PG_CONFIG=/path/to/pg_config
	@tools/install.sh "$(PG_CONFIG)"

deb: ## Debian packages of the extension and the client, in build/deb
	@tools/deb.sh "$(PG_CONFIG)"

clean: ## remove what was built here (the cache of finished builds stays)
	@tools/clean.sh
