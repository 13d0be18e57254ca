//! Whether the rules of a tenant still load with a file added, replaced or taken away. Compiled are the file, what it refers
//! to, and what refers to it: not thousands of rules for each change.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_pipeline::Problem;
use tidegate_rules::{DocumentKind, Outline, RuleFile, RuleProblem, RuleSet, RulesConfig, outline};

use super::refusal::Refusal;
use super::shelf::{FileKey, Item, api_name, marked_file, text_of, unmarked};

/// What to do about a text without a rule.
const NO_RULE: &str = "a rule has at least a title, a logsource and a detection; see docs/rules.md";
/// Bytes of the id of a rule that is made over the API.
const ID_BYTES_MAX: usize = 128;

/// The files that a tenant sees, and a change of one of them.
pub struct Check<'a> {
    /// The tenant.
    pub org_id: &'a str,
    /// The rules that it sees.
    pub items: &'a [Item],
    /// The bounds.
    pub config: &'a RulesConfig,
}

/// Which file a text is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A new one.
    New,
    /// This one.
    Of(FileKey),
    /// The tenant's own of the same id if there is one, else a new one.
    OwnOrNew,
}

/// A text that would load.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The id that the file is named by.
    pub id: String,
    /// Its documents.
    pub documents: Vec<Outline>,
}

impl Check<'_> {
    /// Looks at a text that is to be a file. Blocks for as long as it compiles.
    ///
    /// # Errors
    /// What is wrong with it, or with what refers to it.
    pub fn text(&self, text: &str, place: &Place) -> Result<Checked, Refusal> {
        let own = marked_file(self.org_id, NEW_FILE, text);
        let (documents, mut problems) = outline(&own, self.config);
        problems.iter_mut().for_each(|problem| *problem = unmarked(problem.clone()));
        if !problems.is_empty() {
            return Err(Refusal::invalid_rule(problems));
        }
        let Some(first) = documents.first() else {
            return Err(Refusal::invalid_text(1, "the text holds no rule", NO_RULE));
        };
        let id = own_id(first)?;
        let replaced = match place {
            Place::New => None,
            Place::Of(key) => Some(key.clone()),
            Place::OwnOrNew => {
                let key = (self.org_id.to_owned(), api_name(&id));
                self.items.iter().any(|item| file_key(item) == key).then_some(key)
            }
        };
        let replaced = replaced.as_ref();
        self.ids_are_free(&documents, replaced)?;
        let users = replaced.map(|key| self.users_of(key)).unwrap_or_default();
        let needs = documents.iter().chain(users.values().flat_map(|user| &user.documents));
        let context = self.needed_by(needs, &documents, replaced, &users);
        let files: Vec<RuleFile> =
            [own.clone()].into_iter().chain(users.values().map(|user| user.file.clone())).chain(context).collect();
        let problems = self.compile(&files)?;
        let (own_problems, others): (Vec<_>, Vec<_>) =
            problems.into_iter().partition(|problem| problem.file == own.name);
        if !own_problems.is_empty() {
            return Err(Refusal::invalid_rule(own_problems.into_iter().map(unmarked).collect()));
        }
        broken(&users, others)?;
        Ok(Checked { id, documents })
    }

    /// Looks whether a file can go. Blocks for as long as it compiles.
    ///
    /// # Errors
    /// What refers to it.
    pub fn removal(&self, key: &FileKey) -> Result<(), Refusal> {
        let users = self.users_of(key);
        if users.is_empty() {
            return Ok(());
        }
        let context = self.needed_by(users.values().flat_map(|user| &user.documents), &[], Some(key), &users);
        let files: Vec<RuleFile> = users.values().map(|user| user.file.clone()).chain(context).collect();
        let problems = self.compile(&files)?;
        broken(&users, problems)
    }

    /// Looks whether no other rule that the tenant sees, but those of one file, has one of these ids.
    ///
    /// # Errors
    /// 409 naming the file that has.
    pub fn ids_are_free(&self, documents: &[Outline], replaced: Option<&FileKey>) -> Result<(), Refusal> {
        for document in documents {
            let taken = |item: &&Item| item.id() == document.id && replaced != Some(&file_key(item));
            if let Some(other) = self.items.iter().find(taken) {
                let message = format!("the id {} is that of a rule in {}", document.id, other.entry.id);
                let hint = match other.entry.org_id == self.org_id {
                    true => "PUT replaces a rule; a new rule needs a new UUID",
                    false => "give the rule a new UUID",
                };
                return Err(Problem::new(409, "rule_exists", message).hint(hint).into());
            }
        }
        Ok(())
    }

    fn compile(&self, files: &[RuleFile]) -> Result<Vec<RuleProblem>, Refusal> {
        match RuleSet::compile(files, self.config) {
            Ok((_, problems)) => Ok(problems),
            Err(error) => {
                tracing::error!(%error, "rules could not be compiled: a bug");
                Err(Problem::new(500, "internal", "the rules could not be compiled; the server's log says why").into())
            }
        }
    }

    /// The tenant's own files that refer to a document of this one.
    fn users_of(&self, key: &FileKey) -> BTreeMap<FileKey, User> {
        let is_own = |item: &&Item| file_key(item) == *key;
        let named: Vec<&Outline> = self.items.iter().filter(is_own).filter_map(Item::document).collect();
        let mut users: BTreeMap<FileKey, User> = BTreeMap::new();
        for item in self.items.iter().filter(|item| item.entry.org_id == self.org_id && file_key(item) != *key) {
            let refers = |document: &Outline| {
                document.refers_to.iter().any(|name| named.iter().any(|named| is_named(named, name)))
            };
            if item.document().is_some_and(refers) {
                let seen = item.seen.as_ref();
                users.entry(file_key(item)).or_insert_with(|| User {
                    file: marked_file(&item.entry.org_id, &item.entry.id, text_of(&item.entry)),
                    documents: seen.map(|seen| documents_of(&seen.documents)).unwrap_or_default(),
                    sound: seen.is_some_and(|seen| seen.problems.is_empty()),
                });
            }
        }
        users
    }

    /// The files that hold what documents refer to, and what those refer to in turn, but for files that are there already and
    /// for what `own` holds.
    fn needed_by<'d>(
        &self,
        documents: impl Iterator<Item = &'d Outline>,
        own: &[Outline],
        replaced: Option<&FileKey>,
        users: &BTreeMap<FileKey, User>,
    ) -> Vec<RuleFile> {
        let mut asked: BTreeSet<String> = BTreeSet::new();
        let mut open: Vec<String> = documents.flat_map(|document| document.refers_to.iter().cloned()).collect();
        let mut files: BTreeMap<FileKey, RuleFile> = BTreeMap::new();
        while let Some(name) = open.pop() {
            if asked.contains(&name) || own.iter().any(|document| is_named(document, &name)) {
                continue;
            }
            for item in self.items {
                let key = file_key(item);
                let known = replaced == Some(&key) || users.contains_key(&key) || files.contains_key(&key);
                let Some(seen) = item.seen.as_ref().filter(|_| !known) else { continue };
                if item.document().is_some_and(|document| is_named(document, &name)) {
                    open.extend(seen.documents.iter().flat_map(|(document, _)| document.refers_to.iter().cloned()));
                    files.insert(key, marked_file(&item.entry.org_id, &item.entry.id, text_of(&item.entry)));
                }
            }
            asked.insert(name);
        }
        files.into_values().collect()
    }
}

/// The name of a file that is no file yet. It cannot be that of one in a folder, which ends with `.yml`.
const NEW_FILE: &str = "rule";

impl Check<'_> {
    /// The files that a rule runs with: its own, what it refers to, and the filters that are on it. `owner` is the tenant whose
    /// rule it is, which may be the one for all.
    ///
    /// # Errors
    /// Why its own file cannot be read, or does not load.
    pub fn to_run(&self, text: &str, owner: &str) -> Result<Vec<RuleFile>, Refusal> {
        let own = marked_file(owner, NEW_FILE, text);
        let (documents, problems) = outline(&own, self.config);
        if !problems.is_empty() {
            return Err(Refusal::invalid_rule(problems.into_iter().map(unmarked).collect()));
        }
        if documents.is_empty() {
            return Err(Refusal::invalid_text(1, "the text holds no rule", NO_RULE));
        }
        let is_own = |item: &Item| documents.iter().any(|document| document.id == item.id());
        let older: BTreeSet<FileKey> = self.items.iter().filter(|item| is_own(item)).map(file_key).collect();
        let on_it = |item: &&Item| {
            let names = |name: &String| documents.iter().any(|document| is_named(document, name));
            let filter = item.document().filter(|document| document.kind == DocumentKind::Filter && item.loads());
            filter.is_some_and(|filter| filter.refers_to.is_empty() || filter.refers_to.iter().any(names))
        };
        let mut files: BTreeMap<FileKey, RuleFile> = BTreeMap::new();
        for item in self.items.iter().filter(|item| !older.contains(&file_key(item))).filter(on_it) {
            let file = marked_file(&item.entry.org_id, &item.entry.id, text_of(&item.entry));
            files.insert(file_key(item), file);
        }
        let mut context = self.needed_by(documents.iter(), &documents, None, &BTreeMap::new());
        context.retain(|file| !older.iter().any(|(org_id, name)| file.name == marked_file(org_id, name, "").name));
        let mut all = vec![own];
        for file in context.into_iter().chain(files.into_values()) {
            if !all.iter().any(|known| known.name == file.name && known.org_id == file.org_id) {
                all.push(file);
            }
        }
        Ok(all)
    }
}

/// Whether a problem is one of the file that is no file yet; as its tenant may see it.
pub fn own_problem(problem: &RuleProblem) -> Option<RuleProblem> {
    let problem = unmarked(problem.clone());
    (problem.file == NEW_FILE).then_some(problem)
}

/// A file that refers to another.
struct User {
    file: RuleFile,
    documents: Vec<Outline>,
    /// Whether it loads now.
    sound: bool,
}

/// Tells which of the files that load now would not any more.
fn broken(users: &BTreeMap<FileKey, User>, problems: Vec<RuleProblem>) -> Result<(), Refusal> {
    let mut broken = Vec::new();
    for problem in problems {
        if users.values().any(|user| user.sound && user.file.name == problem.file) {
            broken.push(unmarked(problem));
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Refusal::in_use(broken)) }
}

fn documents_of(documents: &[(Outline, bool)]) -> Vec<Outline> {
    documents.iter().map(|(document, _)| document.clone()).collect()
}

fn is_named(document: &Outline, name: &str) -> bool {
    document.id == name || document.name.as_deref() == Some(name) || document.title == name
}

/// The tenant and the name of an item's file.
pub fn file_key(item: &Item) -> FileKey {
    (item.entry.org_id.clone(), item.entry.id.clone())
}

/// The id that a file is named by: that of its first document.
fn own_id(first: &Outline) -> Result<String, Refusal> {
    let Some(id) = &first.own_id else {
        let hint = match new_uuid() {
            Some(uuid) => format!("add the line `id: {uuid}`"),
            None => "add the line `id:` with a new UUID".to_owned(),
        };
        return Err(Refusal::invalid_text(1, "the rule has no id", hint));
    };
    let decent = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let well_formed = (1..=ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(decent)
        && id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if well_formed {
        return Ok(id.clone());
    }
    let reason = format!("the id has to be 1 to {ID_BYTES_MAX} letters, digits, '-', '_' or '.'");
    Err(Refusal::invalid_text(1, reason, "a UUID is best"))
}

/// A random UUID (RFC 9562, version 4).
fn new_uuid() -> Option<String> {
    let (high, low) = (getrandom::u64().ok()?, getrandom::u64().ok()?);
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | (0b10 << 62);
    let (time, middle, version) = (high >> 32, (high >> 16) & 0xffff, high & 0xffff);
    Some(format!("{time:08x}-{middle:04x}-{version:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_uuid_says_its_version_and_variant() {
        let uuid = new_uuid().expect("random bits");
        let parts: Vec<&str> = uuid.split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{uuid}");
        assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{uuid}");
    }
}
