//! A type's name is defined once, so that a reader who searches for it finds what it means.

use crate::sources::Source;
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};

/// Names that every machine or actor may define.
const BY_MODULE: [(&str, &str); 6] = [
    ("Config", "the settings of a machine"),
    ("Effect", "what a machine wants done"),
    ("Event", "what happens to a machine"),
    ("Parts", "what an actor is built from"),
    ("Ports", "whom an actor tells what"),
    ("Start", "where an actor goes on"),
];

/// The types of a file that other files may name.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    fn add(&mut self, visibility: &syn::Visibility, name: &syn::Ident) {
        match visibility {
            syn::Visibility::Public(_) | syn::Visibility::Restricted(_) => self.0.insert(name.to_string()),
            syn::Visibility::Inherited => false,
        };
    }
}

impl<'a> Visit<'a> for Names {
    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        self.add(&item.vis, &item.ident);
    }

    fn visit_item_enum(&mut self, item: &'a syn::ItemEnum) {
        self.add(&item.vis, &item.ident);
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        self.add(&item.vis, &item.ident);
    }

    fn visit_item_type(&mut self, item: &'a syn::ItemType) {
        self.add(&item.vis, &item.ident);
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

/// Whether something is built for tests only.
pub(crate) fn is_test(attributes: &[syn::Attribute]) -> bool {
    let is_cfg_test = |attribute: &syn::Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    };
    attributes.iter().any(is_cfg_test)
}

/// Names that are defined in several files and not allowed, and allowed ones that are defined only once.
pub(crate) fn collisions(sources: &[Source]) -> Vec<String> {
    let mut defined: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let mut names = Names::default();
        names.visit_file(&source.syntax());
        for name in names.0 {
            defined.entry(name).or_default().insert(&source.path);
        }
    }
    let excused: BTreeMap<&str, &str> = BY_MODULE.into_iter().collect();
    let mut wrong = Vec::new();
    for (name, places) in &defined {
        if places.len() > 1 && !excused.contains_key(name.as_str()) {
            let places: Vec<&str> = places.iter().copied().collect();
            wrong.push(format!("{name} is defined in {}", places.join(", ")));
        }
    }
    for name in excused.keys() {
        if defined.get(*name).is_none_or(|places| places.len() < 2) {
            wrong.push(format!("{name} is defined once at most: take it off the list of excuses"));
        }
    }
    wrong
}
