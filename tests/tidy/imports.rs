//! Imports go in one direction. Of the modules in one folder, none may import (itself, or through its submodules) from
//! one that imports from it. So each can be read, tested and replaced without those above it.

use crate::names::is_test;
use crate::sources::{in_folder, Source, PRODUCT};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};

/// Allowed imports that close a circle: crate, folder, importing module, imported module, reason.
const EXCUSED: [(&str, &str, &str, &str, &str); 1] = [(
    "dsm",
    "env",
    "net",
    "sim",
    "a stream is an enum of its kinds, so that no byte goes through dynamic dispatch; and the simulated world, which hands \
     one out, is what carries its bytes",
)];

/// A module's place in its crate: the names from the root on.
type Place = Vec<String>;

/// The names and paths of a module.
#[derive(Default)]
struct Module {
    /// Names from `use` items, each with its path as written.
    names: BTreeMap<String, Place>,
    /// All paths in the module.
    paths: Vec<Place>,
}

impl<'a> Visit<'a> for Module {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&mut Vec::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

impl Module {
    fn tree(&mut self, front: &mut Place, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                front.push(path.ident.to_string());
                self.tree(front, &path.tree);
                front.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(front, tree)),
            syn::UseTree::Glob(_) => self.paths.push(front.clone()),
            syn::UseTree::Name(name) => self.name(front, &name.ident, &name.ident),
            syn::UseTree::Rename(rename) => self.name(front, &rename.ident, &rename.rename),
        }
    }

    fn name(&mut self, front: &Place, name: &syn::Ident, known_as: &syn::Ident) {
        let mut path = front.clone();
        let mut known_as = known_as.to_string();
        if name == "self" {
            known_as = front.last().cloned().unwrap_or_default();
        } else {
            path.push(name.to_string());
        }
        self.names.insert(known_as, path.clone());
        self.paths.push(path);
    }
}

/// The circles of each crate, one line each.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    PRODUCT
        .into_iter()
        .flat_map(|(name, folder)| {
            let modules = modules(sources, folder);
            circles_of(name, &modules).into_iter().map(move |circle| format!("{name}: {circle}"))
        })
        .collect()
}

fn modules(sources: &[Source], folder: &str) -> BTreeMap<Place, Module> {
    let mut modules = BTreeMap::new();
    for source in sources.iter().filter(|source| in_folder(&source.path, folder)) {
        let path = source.path[folder.len() + 1..].trim_end_matches(".rs");
        let mut place: Place = path.split('/').map(str::to_owned).collect();
        if place.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
            place.pop();
        }
        if place.iter().any(|name| name == "tests") {
            continue;
        }
        let mut module = Module::default();
        module.visit_file(&source.syntax());
        modules.insert(place, module);
    }
    modules
}

/// The module to which `path` leads when it is written in `from`; `None` if it leads out of the crate.
fn resolve(modules: &BTreeMap<Place, Module>, from: &Place, path: &[String], depth: usize) -> Option<Place> {
    let (first, rest) = path.split_first()?;
    let (mut at, mut rest) = match first.as_str() {
        "crate" => (Vec::new(), rest),
        "self" => (from.clone(), rest),
        "super" => (from[..from.len().checked_sub(1)?].to_vec(), rest),
        _ => (from.clone(), path),
    };
    let mut is_local = !matches!(first.as_str(), "crate" | "self" | "super");
    while let Some((name, further)) = rest.split_first() {
        if name == "super" {
            at.pop()?;
            rest = further;
            continue;
        }
        let mut below = at.clone();
        below.push(name.clone());
        if modules.contains_key(&below) {
            (at, rest, is_local) = (below, further, false);
            continue;
        }
        let brought = modules.get(&at).and_then(|module| module.names.get(name));
        if let Some(brought) = brought.filter(|brought| depth > 0 && brought.as_slice() != path) {
            let whole: Vec<String> = brought.iter().chain(further).cloned().collect();
            return resolve(modules, &at, &whole, depth - 1);
        }
        break;
    }
    (!is_local).then_some(at)
}

/// Importing and imported module, with an instance.
type Edges = BTreeMap<(String, String), String>;

/// The imports between neighbours, in each folder.
fn neighbours(modules: &BTreeMap<Place, Module>) -> BTreeMap<Place, Edges> {
    let mut neighbours: BTreeMap<Place, Edges> = BTreeMap::new();
    for (from, module) in modules {
        for path in &module.paths {
            let Some(to) = resolve(modules, from, path, 8) else { continue };
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if shared < from.len() && shared < to.len() {
                let edge = (from[shared].clone(), to[shared].clone());
                let instance = format!("{} -> {}", from.join("::"), to.join("::"));
                neighbours.entry(from[..shared].to_vec()).or_default().entry(edge).or_insert(instance);
            }
        }
    }
    neighbours
}

/// The imports that are part of a circle and not allowed, and allowed ones that close no circle.
fn circles_of(name: &str, modules: &BTreeMap<Place, Module>) -> Vec<String> {
    let mut excuses: BTreeSet<_> = EXCUSED
        .into_iter()
        .filter(|(of, ..)| *of == name)
        .map(|(_, at, from, to, _)| (at, from, to))
        .collect();
    let mut found = Vec::new();
    for (folder, edges) in neighbours(modules) {
        let folder = shown(&folder);
        let all = reach(edges.keys());
        let is_excused =
            |(from, to): &(String, String)| excuses.contains(&(folder.as_str(), from.as_str(), to.as_str()));
        let kept: Vec<_> = edges.keys().filter(|edge| !is_excused(edge)).collect();
        let left = reach(kept.iter().copied());
        for (from, to) in kept {
            if left.contains(&(to.clone(), from.clone())) {
                let instance = &edges[&(from.clone(), to.clone())];
                found.push(format!("in {folder}: {from} -> {to} is part of a circle ({instance})"));
            }
        }
        excuses
            .retain(|(at, from, to)| *at != folder || !all.contains(&((*to).to_owned(), (*from).to_owned())));
    }
    let needless = excuses.into_iter();
    found.extend(
        needless
            .map(|(at, from, to)| format!("in {at}: {from} -> {to} closes no circle: take the excuse away")),
    );
    found
}

fn shown(folder: &Place) -> String {
    if folder.is_empty() {
        "the root".to_owned()
    } else {
        folder.join("::")
    }
}

/// All pairs of which the second can be reached from the first.
fn reach<'a>(edges: impl Iterator<Item = &'a (String, String)>) -> BTreeSet<(String, String)> {
    let mut reach: BTreeSet<(String, String)> = edges.cloned().collect();
    loop {
        let mut more = BTreeSet::new();
        for (from, over) in &reach {
            let further = reach.range((over.clone(), String::new())..).take_while(|(start, _)| start == over);
            more.extend(
                further.map(|(_, to)| (from.clone(), to.clone())).filter(|pair| !reach.contains(pair)),
            );
        }
        if more.is_empty() {
            return reach;
        }
        reach.extend(more);
    }
}
