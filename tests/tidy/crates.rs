//! Checks dependencies against `deny.toml`: licences and duplicate versions. Where cargo-deny is installed, `make deny`
//! checks the rest, too; it takes longer to build than this project, and its advisories need the network.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The parts of `deny.toml` that are read.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Package>,
}

/// A crate, as `deny.toml`, `Cargo.lock` and `cargo metadata` name it.
#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn deny() -> Deny {
    toml::from_str(&fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

/// Crates with several versions in the lock file that `deny.toml` does not list, and listed ones that no longer have
/// several.
pub(crate) fn doubles() -> Vec<String> {
    let lock: Lock = toml::from_str(&fs::read_to_string(root().join("Cargo.lock")).unwrap()).unwrap();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock.package {
        versions.entry(package.name).or_default().insert(package.version);
    }
    let skip = deny().bans.skip;
    let is_skipped = |name: &str, version: &str| {
        skip.iter()
            .any(|skipped| skipped.name == name && version.starts_with(&format!("{}.", skipped.version)))
    };
    let mut wrong = Vec::new();
    for (name, versions) in &versions {
        let expected = versions.iter().filter(|version| is_skipped(name, version)).count();
        if versions.len() > expected + 1 {
            wrong.push(format!("{name} is there in the versions {versions:?}"));
        }
    }
    for skipped in &skip {
        if versions.get(&skipped.name).is_none_or(|versions| versions.len() < 2) {
            wrong.push(format!("{} is there once at most: take it off the list of deny.toml", skipped.name));
        }
    }
    wrong
}

/// Crates whose licence `deny.toml` does not allow, among those that `cargo test` builds here.
pub(crate) fn licences() -> Vec<String> {
    let host = host();
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Metadata = serde_json::from_slice(&metadata.stdout).unwrap();
    assert!(metadata.packages.len() > 50, "only {} crates are found", metadata.packages.len());
    let allow = deny().licenses.allow;
    let is_allowed = |license: &str| {
        let parsed = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX);
        parsed.is_ok_and(|parsed| {
            parsed.evaluate(|needed| {
                needed.addition.is_none() && needed.license.id().is_some_and(|id| allow.contains(id.name))
            })
        })
    };
    let wrong = metadata
        .packages
        .into_iter()
        .filter(|package| package.license.as_deref().is_none_or(|license| !is_allowed(license)));
    wrong
        .map(|package| {
            format!("{} {}: {}", package.name, package.version, package.license.unwrap_or_default())
        })
        .collect()
}

/// The target of the compiler.
fn host() -> String {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}
