//! Random sets of correlations: every kind, condition and part that Sigma has, and correlations of correlations.

use std::collections::BTreeMap;
use std::fmt::Write;

use proptest::prelude::*;

/// Numbers are whole multiples of 10^-19.
pub const UNIT: i128 = 10i128.pow(19);
/// Bounds of measured values.
const BOUNDS: [&str; 8] = ["-1", "0", "0.5", "1", "1.5", "2", "3.5", "5"];
const RELATIONS: [&str; 6] = ["gt", "gte", "lt", "lte", "eq", "neq"];
/// Detection rules: id, name, the values of `k` that they match. Two share a name, and some match the same events.
pub const DETECTIONS: [(&str, &str, &str); 5] =
    [("id-a", "a", "a"), ("id-b", "b", "b"), ("id-c", "c", "c"), ("id-m1", "m", "a"), ("id-m2", "m", "b")];

/// The kinds of correlations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    EventCount,
    ValueCount,
    Temporal,
    Ordered,
    Sum,
    Average,
    Percentile,
    Median,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::EventCount,
        Self::ValueCount,
        Self::Temporal,
        Self::Ordered,
        Self::Sum,
        Self::Average,
        Self::Percentile,
        Self::Median,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EventCount => "event_count",
            Self::ValueCount => "value_count",
            Self::Temporal => "temporal",
            Self::Ordered => "temporal_ordered",
            Self::Sum => "value_sum",
            Self::Average => "value_avg",
            Self::Percentile => "value_percentile",
            Self::Median => "value_median",
        }
    }

    pub fn is_temporal(self) -> bool {
        matches!(self, Self::Temporal | Self::Ordered)
    }

    pub fn is_numeric(self) -> bool {
        matches!(self, Self::Sum | Self::Average | Self::Percentile | Self::Median)
    }
}

/// An expression over the rules of a correlation, by their places.
#[derive(Debug, Clone)]
pub enum Tree {
    Seen(usize),
    Not(Box<Tree>),
    And(Box<Tree>, Box<Tree>),
    Or(Box<Tree>, Box<Tree>),
}

impl Tree {
    fn places(&self, out: &mut Vec<usize>) {
        match self {
            Self::Seen(place) if !out.contains(place) => out.push(*place),
            Self::Seen(_) => {}
            Self::Not(inner) => inner.places(out),
            Self::And(left, right) | Self::Or(left, right) => {
                left.places(out);
                right.places(out);
            }
        }
    }

    fn renumber(&mut self, number: &impl Fn(usize) -> usize) {
        match self {
            Self::Seen(place) => *place = number(*place),
            Self::Not(inner) => inner.renumber(number),
            Self::And(left, right) | Self::Or(left, right) => {
                left.renumber(number);
                right.renumber(number);
            }
        }
    }

    fn text(&self, names: &[String]) -> String {
        match self {
            Self::Seen(place) => names[*place].clone(),
            Self::Not(inner) => format!("not ({})", inner.text(names)),
            Self::And(left, right) => format!("({}) and ({})", left.text(names), right.text(names)),
            Self::Or(left, right) => format!("({}) or {}", left.text(names), right.text(names)),
        }
    }

    /// Whether it holds; `negated` when a `not` stands before it. What is asked for must be `seen`, what is ruled out `absent`.
    pub fn holds(&self, negated: bool, seen: &dyn Fn(usize) -> bool, absent: &dyn Fn(usize) -> bool) -> bool {
        match self {
            Self::Seen(place) if negated => absent(*place),
            Self::Seen(place) => seen(*place),
            Self::Not(inner) => inner.holds(!negated, seen, absent),
            Self::And(left, right) if negated => left.holds(true, seen, absent) || right.holds(true, seen, absent),
            Self::Or(left, right) if !negated => left.holds(false, seen, absent) || right.holds(false, seen, absent),
            Self::And(left, right) | Self::Or(left, right) => {
                left.holds(negated, seen, absent) && right.holds(negated, seen, absent)
            }
        }
    }

    fn rules_out(&self, negated: bool) -> bool {
        match self {
            Self::Seen(_) => negated,
            Self::Not(inner) => inner.rules_out(!negated),
            Self::And(left, right) | Self::Or(left, right) => left.rules_out(negated) || right.rules_out(negated),
        }
    }
}

/// What is asked of a window.
#[derive(Debug, Clone)]
pub enum Condition {
    /// All of its rules.
    All,
    Words(Tree),
    /// Relation, and bound in [`UNIT`]s.
    Bounds(Vec<(&'static str, i128)>),
}

/// A correlation.
#[derive(Debug, Clone)]
pub struct Spec {
    pub id: String,
    pub kind: Kind,
    /// Names of detections, or ids of correlations before it.
    pub rules: Vec<String>,
    /// Whether `rules` is left out, since the condition names them.
    unsaid: bool,
    pub group_by: Vec<String>,
    /// Of the field `who`: rule → field.
    pub aliases: BTreeMap<String, String>,
    pub span: i64,
    pub condition: Condition,
    pub fields: Vec<String>,
    pub percentile: i128,
    pub generate: bool,
    /// The tenant that it belongs to.
    pub org: Option<&'static str>,
}

/// Whether a relation holds.
pub fn holds(relation: &str, left: i128, right: i128) -> bool {
    match relation {
        "gt" => left > right,
        "gte" => left >= right,
        "lt" => left < right,
        "lte" => left <= right,
        "eq" => left == right,
        _ => left != right,
    }
}

/// The number in [`UNIT`]s that a decimal is.
pub fn number(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{fraction:0<19}");
    let value: i128 = if all.bytes().all(|byte| byte.is_ascii_digit()) { all.parse().ok()? } else { return None };
    Some(if negative { -value } else { value })
}

impl Spec {
    /// Whether more events can only help, so that windows are judged with the event.
    pub fn is_eager(&self) -> bool {
        match &self.condition {
            Condition::All => true,
            Condition::Words(tree) => !tree.rules_out(false),
            Condition::Bounds(bounds) => bounds.iter().all(|(relation, _)| relation.starts_with('g')),
        }
    }

    /// What a field is called in the events of a rule.
    pub fn field<'a>(&'a self, field: &'a str, slot: usize) -> &'a str {
        let own = if field == "who" { self.aliases.get(&self.rules[slot]) } else { None };
        own.map_or(field, String::as_str)
    }

    /// The section as YAML.
    fn yaml(&self) -> String {
        let mut text = format!("type: {}", self.kind.name());
        let mut push = |part: String| write!(text, ", {part}").expect("a string");
        if !self.unsaid {
            push(format!("rules: [{}]", self.rules.join(", ")));
        }
        if !self.group_by.is_empty() {
            push(format!("group-by: [{}]", self.group_by.join(", ")));
        }
        push(format!("timespan: {}s", self.span));
        match &self.condition {
            Condition::All => {}
            Condition::Words(tree) => push(format!("condition: {}", tree.text(&self.rules))),
            Condition::Bounds(bounds) => {
                let tenths = |bound: i128| bound / (UNIT / 10);
                let mut parts: Vec<String> = bounds
                    .iter()
                    .map(|(relation, bound)| format!("{relation}: {}", tenths(*bound) as f64 / 10.0))
                    .collect();
                if !self.fields.is_empty() {
                    parts.push(format!("field: [{}]", self.fields.join(", ")));
                }
                if self.kind == Kind::Percentile {
                    parts.push(format!("percentile: {}", self.percentile));
                }
                push(format!("condition: {{{}}}", parts.join(", ")));
            }
        }
        if !self.aliases.is_empty() {
            let fields: Vec<String> = self.aliases.iter().map(|(rule, field)| format!("{rule}: {field}")).collect();
            push(format!("aliases: {{who: {{{}}}}}", fields.join(", ")));
        }
        if self.generate {
            push("generate: true".into());
        }
        format!("---\ntitle: T\nid: {}\ncorrelation: {{{text}}}\n", self.id)
    }
}

/// Rule files (tenant, text) with the detections, for events of both sources of a web server, and the correlations.
pub fn files(specs: &[Spec]) -> Vec<(&'static str, String)> {
    let detection = |(id, name, value): &(&str, &str, &str)| {
        format!(
            "---\ntitle: T\nid: {id}\nname: {name}\nlogsource: {{category: webserver}}\ndetection: {{s: {{k: {value}}}, condition: s}}\n"
        )
    };
    let of = |org: Option<&str>| specs.iter().filter(|spec| spec.org == org).map(Spec::yaml).collect::<String>();
    let everyone = DETECTIONS.iter().map(detection).collect::<String>() + &of(None);
    let mut files = vec![("default", everyone)];
    if specs.iter().any(|spec| spec.org.is_some()) {
        files.push(("acme", of(Some("acme"))));
    }
    files.iter_mut().for_each(|(_, text)| *text = text.trim_start_matches("---\n").to_owned());
    files
}

/// What a [`Spec`] is made of.
#[derive(Debug, Clone)]
pub struct Raw {
    kind: usize,
    rules: Vec<usize>,
    group: usize,
    alias: bool,
    span: i64,
    bounds: Vec<(usize, usize)>,
    field: usize,
    percentile: u8,
    words: Option<Tree>,
    unsaid: bool,
    generate: bool,
}

fn tree() -> impl Strategy<Value = Tree> {
    (0..4usize).prop_map(Tree::Seen).prop_recursive(3, 6, 2, |inner| {
        prop_oneof![
            1 => inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            2 => (inner.clone(), inner.clone()).prop_map(|(left, right)| Tree::And(Box::new(left), Box::new(right))),
            1 => (inner.clone(), inner).prop_map(|(left, right)| Tree::Or(Box::new(left), Box::new(right))),
        ]
    })
}

fn raw() -> impl Strategy<Value = Raw> {
    let condition = (
        proptest::collection::vec((0..6usize, 0..8usize), 1..3),
        prop_oneof![1 => Just(None), 2 => tree().prop_map(Some)],
        any::<bool>(),
    );
    let parts = (proptest::collection::vec(0..10usize, 1..4), 0..5usize, any::<bool>(), 2..13i64);
    (0..8usize, parts, condition, (0..4usize, 0..=100u8), any::<bool>()).prop_map(
        |(kind, (rules, group, alias, span), (bounds, words, unsaid), (field, percentile), generate)| Raw {
            kind,
            rules,
            group,
            alias,
            span,
            bounds,
            field,
            percentile,
            words,
            unsaid,
            generate,
        },
    )
}

/// One to three correlations; later ones may refer to earlier ones. The second part says from which one on they belong to a tenant.
pub fn specs() -> impl Strategy<Value = (Vec<Raw>, usize)> {
    (proptest::collection::vec(raw(), 1..4), prop_oneof![3 => Just(3usize), 1 => 0..3usize])
}

/// The correlations: what is not allowed is put right.
pub fn made((raws, owned_from): &(Vec<Raw>, usize)) -> Vec<Spec> {
    let mut specs: Vec<Spec> = Vec::new();
    for (at, raw) in raws.iter().enumerate() {
        let org = (at >= *owned_from).then_some("acme");
        let spec = one(at, raw, org, &specs);
        specs.push(spec);
    }
    specs
}

fn one(at: usize, raw: &Raw, org: Option<&'static str>, before: &[Spec]) -> Spec {
    let mut rules: Vec<String> = Vec::new();
    for rule in &raw.rules {
        // Half of the references of a later one are to those before it.
        let name = match rule {
            0..4 => ["a", "b", "c", "m"][*rule].to_owned(),
            _ if before.is_empty() => ["a", "b", "c"][rule % 3].to_owned(),
            _ => before[rule % before.len()].id.clone(),
        };
        if !rules.contains(&name) {
            rules.push(name);
        }
    }
    let inner: Vec<&Spec> = before.iter().filter(|spec| rules.contains(&spec.id)).collect();
    let mut group_by: Vec<String> = [vec!["u"], vec!["u"], vec!["h"], vec!["u", "h"], vec![]][raw.group]
        .iter()
        .map(|name| (*name).into())
        .collect();
    let known = |spec: &Spec, field: &str| spec.is_eager() || spec.group_by.iter().any(|own| own == field);
    // Firings of what is told when its window is over have the fields of its group only.
    group_by.retain(|field| inner.iter().all(|spec| known(spec, field)));
    let mut aliases = BTreeMap::new();
    if raw.alias && inner.iter().all(|spec| spec.is_eager()) {
        group_by = vec!["who".into()];
        for (place, rule) in rules.iter().enumerate() {
            let first = inner.iter().find(|spec| spec.id == *rule).and_then(|spec| spec.group_by.first());
            let field = first.map_or(if place % 2 == 0 { "u" } else { "h" }, String::as_str);
            aliases.insert(rule.clone(), field.to_owned());
        }
    }
    let mut kind = Kind::ALL[raw.kind];
    let mut fields: Vec<String> = match kind {
        Kind::ValueCount => [vec!["v"], vec!["v", "k"], vec!["u"], vec!["h", "k"]][raw.field].clone(),
        kind if kind.is_numeric() => vec!["v"],
        _ => Vec::new(),
    }
    .into_iter()
    .map(str::to_owned)
    .collect();
    if fields.iter().any(|field| inner.iter().any(|spec| !known(spec, field))) {
        (kind, fields) = (Kind::EventCount, Vec::new());
    }
    let mut spec = Spec {
        id: format!("c{at}"),
        kind,
        rules,
        unsaid: false,
        group_by,
        aliases,
        span: raw.span,
        condition: Condition::All,
        fields,
        percentile: if kind == Kind::Median { 50 } else { i128::from(raw.percentile) },
        generate: raw.generate,
        org,
    };
    spec.ask(raw);
    spec
}

impl Spec {
    /// Gives it a condition.
    fn ask(&mut self, raw: &Raw) {
        if let (true, Some(tree)) = (self.kind.is_temporal(), &raw.words) {
            return self.ask_words(tree.clone(), raw.unsaid);
        }
        if self.kind == Kind::Ordered || (self.kind == Kind::Temporal && raw.unsaid) {
            return;
        }
        let mut bounds: Vec<(&'static str, i128)> = Vec::new();
        for (relation, bound) in &raw.bounds {
            let bound = if self.kind.is_numeric() {
                number(BOUNDS[*bound]).expect("a number")
            } else {
                (*bound as i128) * UNIT
            };
            if bounds.iter().all(|(known, _)| *known != RELATIONS[*relation]) {
                bounds.push((RELATIONS[*relation], bound));
            }
        }
        let most = if self.kind == Kind::Temporal { self.rules.len() as i128 } else { 100 };
        let holds_for = |count: i128| bounds.iter().all(|(relation, bound)| holds(relation, count * UNIT, *bound));
        if !self.kind.is_numeric() && !(1..=most).any(holds_for) {
            bounds = vec![("gte", most.min(2) * UNIT)];
        }
        self.condition = Condition::Bounds(bounds);
    }

    fn ask_words(&mut self, mut tree: Tree, unsaid: bool) {
        let count = self.rules.len();
        tree.renumber(&|place| place % count);
        let mut places = Vec::new();
        tree.places(&mut places);
        for place in 0..count {
            if !places.contains(&place) {
                tree = Tree::And(Box::new(tree), Box::new(Tree::Seen(place)));
                places.push(place);
            }
        }
        if tree.holds(false, &|_| false, &|_| true) {
            let first = places[0];
            tree = Tree::And(Box::new(tree), Box::new(Tree::Seen(first)));
        }
        self.unsaid = unsaid;
        if unsaid {
            // The rules are in the order in which the condition names them.
            tree.renumber(&|place| places.iter().position(|own| *own == place).expect("a place"));
            self.rules = places.iter().map(|place| self.rules[*place].clone()).collect();
        }
        self.condition = Condition::Words(tree);
    }
}
