//! Sockets are opened in one place: whatever leaves a node goes through what `env/net/` does to it, TLS included.

use crate::names::is_test;
use crate::sources::{in_folder, Source};
use syn::visit::{self, Visit};

/// The crate that has the place.
const CRATE: &str = "actors/src";

/// The place, and what may open sockets beside it.
const ALLOWED: [(&str, &str); 2] = [
    ("actors/src/env/net", "the place"),
    ("actors/src/launcher", "free ports, and questions to local masters: it runs without a runtime"),
];

/// Types that are sockets.
const SOCKETS: [&str; 7] =
    ["TcpListener", "TcpSocket", "TcpStream", "UdpSocket", "UnixDatagram", "UnixListener", "UnixStream"];

/// The sockets that a file names.
#[derive(Default)]
struct Named(Vec<String>);

impl<'a> Visit<'a> for Named {
    fn visit_ident(&mut self, name: &'a syn::Ident) {
        let name = name.to_string();
        if SOCKETS.contains(&name.as_str()) {
            self.0.push(name);
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

/// Files that name a socket's type where none is opened, and places that are allowed in vain.
pub(crate) fn strays(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut used = [false; ALLOWED.len()];
    for source in sources.iter().filter(|source| in_folder(&source.path, CRATE)) {
        let mut named = Named::default();
        named.visit_file(&source.syntax());
        let Some(name) = named.0.first() else { continue };
        match ALLOWED.iter().position(|(folder, _)| in_folder(&source.path, folder)) {
            Some(place) => used[place] = true,
            None => wrong.push(format!("{} names {name}: sockets belong into {}", source.path, ALLOWED[0].0)),
        }
    }
    for ((folder, _), is_used) in ALLOWED.iter().zip(used) {
        if !is_used {
            wrong.push(format!("{folder} names no socket: take it off the list"));
        }
    }
    wrong
}
