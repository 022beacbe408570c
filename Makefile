# make verify writes nothing and is what CI runs; make fix rewrites.

.PHONY: verify fix format lint doc test mutants mutants-quick cluster demo

verify: format lint doc test mutants-quick

format:
	cargo fmt --all -- --check

lint:
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
	cargo test --locked

# Planted bugs, which the simulation must find: docs/ARCHITECTURE.md, "Planted bugs".
MUTANTS = cargo test --locked -p dsm --features mutants --test simulation --

mutants:
	$(MUTANTS) --ignored --exact --nocapture mutants::each_is_found

mutants-quick:
	$(MUTANTS) --exact mutants::the_quickest_are_found

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

cluster:
	cargo run --release

demo:
	examples/failover.sh
