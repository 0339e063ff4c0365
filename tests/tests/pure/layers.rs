//! Who imports whom: no module goes in a circle with another, and each layer knows only what
//! is below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Item, UseTree};

/// Path of a module in its crate: `["world", "audits"]`; of the crate itself, nothing.
type Module = Vec<String>;
/// What each module of a crate imports, or names by a path.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

const CRATES: [&str; 4] = ["firewall-common", "firewall-core", "firewall-ebpf", "firewall-agent"];

/// The imports of a crate's own modules among each other.
fn imports_of(name: &str) -> Imports {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
    let mut files = BTreeMap::new();
    collect(&source, &Vec::new(), &mut files);
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let imports_of = |(module, text): (Module, String)| {
        let file = syn::parse_file(&text).map_err(|error| format!("{module:?}: {error}"));
        let file = file.expect("Rust");
        let mut reader = Reader { module: &module, modules: &modules, found: BTreeSet::new() };
        reader.visit_file(&file);
        let Reader { mut found, .. } = reader;
        found.remove(&module);
        (module, found)
    };
    files.into_iter().map(imports_of).collect()
}

fn collect(directory: &Path, at: &Module, files: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let inside: Module = at.iter().cloned().chain([stem.clone()]).collect();
        if path.is_dir() {
            collect(&path, &inside, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let is_folder = ["mod", "lib", "main"].contains(&stem.as_str());
            let module = if is_folder { at.clone() } else { inside };
            // A binary's root has the name of its library's, and belongs to nobody.
            if stem != "main" || name_of(directory) == "firewall-ebpf" {
                files.insert(module, fs::read_to_string(&path).expect("text"));
            }
        }
    }
}

fn name_of(source: &Path) -> String {
    let parent = source.parent().and_then(Path::file_name).unwrap_or_default();
    parent.to_string_lossy().into_owned()
}

struct Reader<'a> {
    module: &'a Module,
    modules: &'a BTreeSet<Module>,
    found: BTreeSet<Module>,
}

impl Reader<'_> {
    /// Notes the module that a path leads to, as far as it is one of this crate.
    fn note(&mut self, path: &[String]) {
        let mut at = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.module.clone(),
            Some(first) => {
                let child: Module = self.module.iter().cloned().chain([first.to_owned()]).collect();
                if !self.modules.contains(&child) {
                    return;
                }
                child
            }
            None => return,
        };
        for (index, name) in path.iter().enumerate() {
            match name.as_str() {
                "super" => drop(at.pop()),
                _ if index == 0 => {}
                name => {
                    at.push(name.to_owned());
                    if !self.modules.contains(&at) {
                        at.pop();
                        break;
                    }
                }
            }
        }
        self.found.insert(at);
    }

    fn note_tree(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.note(before);
                before.pop();
            }
            UseTree::Rename(rename) => {
                before.push(rename.ident.to_string());
                self.note(before);
                before.pop();
            }
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note_tree(tree, before);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        // Tests beside the code may know more.
        if let Item::Mod(module) = item
            && module.content.is_some()
        {
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|it| it.ident.to_string()).collect();
        if names.len() > 1 {
            self.note(&names);
        }
        visit::visit_path(self, path);
    }
}

/// A way from a module back to itself, if there is one. A folder's own file and what is in the
/// folder are one room: its files may use the types of the folder.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let is_inside = |inner: &Module, outer: &Module| inner.starts_with(outer);
    let next = |module: &Module| {
        let imported = imports.get(module).into_iter().flatten();
        imported.filter(|it| !is_inside(module, it)).cloned().collect::<Vec<Module>>()
    };
    let mut done = BTreeSet::new();
    for start in imports.keys() {
        let mut way = vec![(start.clone(), next(start))];
        while let Some((_, left)) = way.last_mut() {
            let Some(module) = left.pop() else {
                done.extend(way.pop().map(|(module, _)| module));
                continue;
            };
            if let Some(begin) = way.iter().position(|(it, _)| *it == module) {
                let names = way.iter().skip(begin).map(|(it, _)| it.join("::"));
                return Some(names.collect());
            }
            if !done.contains(&module) {
                let more = next(&module);
                way.push((module, more));
            }
        }
    }
    None
}

#[test]
fn no_module_goes_in_a_circle() {
    for name in CRATES {
        let imports = imports_of(name);
        assert!(imports.len() > 5, "{name}: {imports:?}");
        assert_eq!(circle(&imports), None, "{name}");
    }
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
    let imports = |list: &[(&str, &[&str])]| -> Imports {
        let all = |names: &[&str]| names.iter().map(|name| module(name)).collect();
        list.iter().map(|(name, names)| (module(name), all(names))).collect()
    };
    assert_eq!(circle(&imports(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])), None);
    assert_eq!(circle(&imports(&[("a", &["a::x"]), ("a::x", &["a"])])), None);
    assert!(circle(&imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])])).is_some());
    assert!(circle(&imports(&[("a::x", &["a::y"]), ("a::y", &["a::x"])])).is_some());
}

/// What of the agent may know what: a layer, and those that it may import.
#[test]
fn each_layer_knows_only_what_is_below_it() {
    let imports = imports_of("firewall-agent");
    // Used by more than one edge, and edges towards nothing.
    let shared = ["regular", "wait"];
    for (module, imported) in &imports {
        let names: Vec<&str> = module.iter().map(String::as_str).collect();
        for other in imported {
            let others: Vec<&str> = other.iter().map(String::as_str).collect();
            let is_allowed = match (names.as_slice(), others.as_slice()) {
                (["edges", own, ..], ["edges", other, ..]) => {
                    // The gate is told which links are vifs in the words of `links`.
                    own == other || shared.contains(other) || (*own, *other) == ("gate", "links")
                }
                (["edges", _, ..], _) => false,
                (["daemon", ..], ["cli", ..]) => false,
                _ => true,
            };
            assert!(is_allowed, "{} imports {}", names.join("::"), others.join("::"));
        }
    }
    assert!(imports.keys().any(|it| it.first().is_some_and(|first| first == "edges")));
}
