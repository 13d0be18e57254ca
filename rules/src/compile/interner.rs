//! Views and predicates, each distinct one once for all rules.

use std::sync::Arc;

use regex::Regex;
use rustc_hash::FxHashMap;

use crate::compile::matcher::Matcher;
use crate::compile::program::{PredicateId, ViewId};
use crate::compile::required::Required;
use crate::problem::Fault;

/// The values that a predicate looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum View {
    /// The first of these columns that has a value in the row. A name that ends with [`WITHIN`] is that of all columns in it.
    Field(Vec<String>),
    /// Every column, for the keywords of the rules of one log source.
    Keywords { log_source: usize },
}

/// Ends a name that stands for an object: for all columns whose names go on after its dot.
pub(crate) const WITHIN: &str = ".*";

/// Whether a name in a view is that of a column. Names of fields may have spaces that rules leave out ("Threat Name").
pub(crate) fn is_name_of(name: &str, column: &str) -> bool {
    let within = |object: &str| column.strip_prefix(object).is_some_and(|rest| rest.starts_with('.'));
    name == column
        || (column.contains(' ') && *name == column.replace(' ', ""))
        || name.strip_suffix(WITHIN).is_some_and(within)
}

/// One predicate.
#[derive(Debug, Clone)]
pub(crate) struct Predicate {
    pub view: ViewId,
    pub matcher: Matcher,
    /// The compiled expression of a [`Matcher::Regex`].
    pub regex: Option<Regex>,
    /// What it asks of a text at least.
    pub required: Option<Arc<Required>>,
}

/// Collects views and predicates while rules compile.
#[derive(Debug)]
pub(crate) struct Interner {
    regex_bytes_max: usize,
    pub views: Vec<View>,
    view_ids: FxHashMap<View, ViewId>,
    pub predicates: Vec<Predicate>,
    predicate_ids: FxHashMap<(ViewId, Arc<Matcher>), PredicateId>,
    regexes: FxHashMap<Box<str>, (Regex, Arc<Required>)>,
}

impl Interner {
    pub fn new(regex_bytes_max: usize) -> Self {
        Self {
            regex_bytes_max,
            views: Vec::new(),
            view_ids: FxHashMap::default(),
            predicates: Vec::new(),
            predicate_ids: FxHashMap::default(),
            regexes: FxHashMap::default(),
        }
    }

    pub fn field_view(&mut self, columns: Vec<String>) -> ViewId {
        self.view(View::Field(columns))
    }

    /// A field that may be an object, to ask whether it is there.
    pub fn object_view(&mut self, mut columns: Vec<String>) -> ViewId {
        let within: Vec<String> = columns.iter().map(|name| format!("{name}{WITHIN}")).collect();
        columns.extend(within);
        self.view(View::Field(columns))
    }

    pub fn keyword_view(&mut self, log_source: usize) -> ViewId {
        self.view(View::Keywords { log_source })
    }

    fn view(&mut self, view: View) -> ViewId {
        let next = self.views.len() as ViewId;
        *self.view_ids.entry(view).or_insert_with_key(|view| {
            self.views.push(view.clone());
            next
        })
    }

    /// The predicate, made if it is new.
    pub fn predicate(&mut self, view: ViewId, matcher: Matcher) -> Result<PredicateId, Fault> {
        let key = (view, Arc::new(matcher));
        if let Some(known) = self.predicate_ids.get(&key) {
            return Ok(*known);
        }
        let regex = match &*key.1 {
            Matcher::Regex(pattern) => Some(self.regex(pattern)?),
            _ => None,
        };
        let (regex, required) = regex.unzip();
        let id = self.predicates.len() as PredicateId;
        self.predicates.push(Predicate { view, matcher: (*key.1).clone(), regex, required });
        self.predicate_ids.insert(key, id);
        Ok(id)
    }

    fn regex(&mut self, pattern: &str) -> Result<(Regex, Arc<Required>), Fault> {
        if let Some(known) = self.regexes.get(pattern) {
            return Ok(known.clone());
        }
        let fault = |reason: String, hint: &str| Err(Fault::new(reason).hint(hint));
        // Before parsing: a syntax tree is several times larger than its text.
        if pattern.len() > self.regex_bytes_max / 160 {
            return fault(format!("the regular expression has {} bytes", pattern.len()), "split it into several rules");
        }
        let built = regex::RegexBuilder::new(pattern)
            .size_limit(self.regex_bytes_max)
            .dfa_size_limit(self.regex_bytes_max)
            .nest_limit(64)
            .build();
        match built {
            Ok(regex) => {
                let made = (regex, Arc::new(Required::of(pattern)));
                self.regexes.insert(pattern.into(), made.clone());
                Ok(made)
            }
            Err(regex::Error::CompiledTooBig(limit)) => fault(
                format!("the regular expression needs more than {limit} bytes when compiled"),
                "lower its repetition counts, or raise regex_bytes_max",
            ),
            Err(error) => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                fault(
                    format!("the regular expression is not supported: {last}"),
                    "look-around and back-references are not; say the rest with `not` in the condition",
                )
            }
        }
    }
}
