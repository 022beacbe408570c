//! The sources of the workspace, as files and as syntax.

use std::fs;
use std::path::Path;

/// One file of Rust.
pub(crate) struct Source {
    /// Its path from the root of the workspace.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Its syntax tree.
    pub(crate) fn syntax(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path))
    }
}

/// The crates that are the product: their names, and the folders of their modules.
pub(crate) const PRODUCT: [(&str, &str); 6] = [
    ("dsm_protocol", "protocol/src"),
    ("dsm_consensus", "protocol/consensus/src"),
    ("dsm_history", "protocol/history/src"),
    ("dsm", "actors/src"),
    ("dsm_server", "bin/common"),
    ("dsm_harness", "bin/harness/src"),
];

/// Every Rust source of the workspace, without generated ones.
pub(crate) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["actors", "bin", "protocol", "tests", "examples"] {
        collect(root, &root.join(folder), &mut found);
    }
    assert!(found.len() > 100, "only {} sources are found", found.len());
    found
}

/// The sources of the crates that are the product, without their tests.
pub(crate) fn product() -> Vec<Source> {
    let in_product = |source: &Source| PRODUCT.iter().any(|(_, folder)| in_folder(&source.path, folder));
    sources().into_iter().filter(in_product).collect()
}

/// Whether `path` is below `folder`.
pub(crate) fn in_folder(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if path
                .file_name()
                .is_some_and(|name| name != "target" && name != "artifacts" && name != "corpus")
            {
                collect(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().display().to_string();
            found.push(Source { path, text });
        }
    }
}
