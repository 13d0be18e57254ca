//! Layouts: the fields that an event has, in their order. What depends on the fields alone is worked out once for each: which
//! mapping recognises it, where each core column comes from, which family of builders it joins.

use std::sync::Arc;

use hashbrown::HashTable;
use tidegate_events::{Dataset, RAW_PREFIX, REST_COLUMN};

use super::family::Family;
use super::names::{FieldId, Names};
use super::plan::{self, PlannedColumn, PlannedRule, Row};
use super::walk::Cell;
use crate::mapping::{Mappings, UNKNOWN};

/// Where the value of a cell goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slot {
    /// To this column of the family.
    Own(usize),
    /// Its name is that of this core column: to the field `raw.<name>`, unless the core column has the same text.
    Shadow(usize, FieldId),
    /// To the field `raw.<name>`, unless a core column took it exactly.
    Consumed(FieldId),
}

/// A mapping, worked out for a layout.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) family: usize,
    pub(super) columns: Box<[PlannedColumn]>,
    pub(super) ids: Box<[PlannedRule]>,
    pub(super) slots: Box<[Slot]>,
    pub(super) name: Arc<str>,
}

/// A mapping that recognises the fields of a layout, if these cells hold these values too.
#[derive(Debug)]
struct Candidate {
    mapping: usize,
    recognise: usize,
    cells: Box<[usize]>,
}

/// The fields of an event in their order, and what follows from them.
#[derive(Debug)]
struct Layout {
    hash: u64,
    dataset: Dataset,
    fields: Box<[FieldId]>,
    candidates: Box<[Candidate]>,
    /// (mapping, plan).
    plans: Vec<(usize, usize)>,
}

/// All layouts that a decoder remembers, and the families that they share.
#[derive(Debug)]
pub(super) struct Layouts {
    mappings: Arc<Mappings>,
    layouts: Vec<Layout>,
    by_hash: HashTable<usize>,
    plans: Vec<Plan>,
    pub(super) families: Vec<Family>,
    layouts_max: usize,
    families_max: usize,
    /// Goes up when layouts are forgotten, and their numbers mean others.
    pub(super) generation: u64,
}

/// A layout joins a family when at least this share of the fields of both together is common to both: then about two nulls
/// are padded for a value at most. Half would pad less, but make twice the batches of real CloudTrail and Windows events.
const COMMON_SHARE: (usize, usize) = (1, 3);

fn hash_of(dataset: Dataset, cells: &[Cell<'_>]) -> u64 {
    cells.iter().fold(dataset as u64, |hash, cell| {
        (hash.rotate_left(5) ^ u64::from(cell.field)).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}

impl Layouts {
    pub(super) fn new(mappings: Arc<Mappings>, layouts_max: usize, families_max: usize) -> Self {
        Self {
            mappings,
            layouts: Vec::new(),
            by_hash: HashTable::new(),
            plans: Vec::new(),
            families: Vec::new(),
            layouts_max: layouts_max.max(1),
            families_max: families_max.max(1),
            generation: 0,
        }
    }

    /// Forgets layouts and plans; families too when they have no rows.
    pub(super) fn forget(&mut self) {
        self.layouts.clear();
        self.by_hash.clear();
        self.plans.clear();
        self.generation += 1;
        if self.families.iter().all(|family| family.len() == 0) {
            self.families.clear();
        }
    }

    /// The number of the layout of `cells`, which is worked out when it is new.
    #[inline]
    pub(super) fn layout_of(&mut self, dataset: Dataset, cells: &[Cell<'_>], names: &Names) -> usize {
        let hash = hash_of(dataset, cells);
        let same = |at: &usize| {
            self.layouts.get(*at).is_some_and(|layout| {
                layout.dataset == dataset
                    && layout.fields.len() == cells.len()
                    && layout.fields.iter().zip(cells).all(|(field, cell)| *field == cell.field)
            })
        };
        match self.by_hash.find(hash, same) {
            Some(at) => *at,
            None => self.new_layout(hash, dataset, cells, names),
        }
    }

    #[cold]
    fn new_layout(&mut self, hash: u64, dataset: Dataset, cells: &[Cell<'_>], names: &Names) -> usize {
        if self.layouts.len() >= self.layouts_max {
            self.forget();
        }
        let fields: Box<[FieldId]> = cells.iter().map(|cell| cell.field).collect();
        let candidates = self.candidates(dataset, &fields, names);
        let at = self.layouts.len();
        self.layouts.push(Layout { hash, dataset, fields, candidates, plans: Vec::new() });
        let Self { by_hash, layouts, .. } = self;
        by_hash.insert_unique(hash, at, |at| layouts.get(*at).map_or(0, |layout| layout.hash));
        at
    }

    fn candidates(&self, dataset: Dataset, fields: &[FieldId], names: &Names) -> Box<[Candidate]> {
        let cell_of = |name: &str| cell_of(name, fields, names);
        let mut candidates = Vec::new();
        for (at, mapping) in self.mappings.iter().enumerate().filter(|(_, mapping)| mapping.dataset == dataset) {
            for (recognise_at, recognise) in mapping.recognise.iter().enumerate() {
                let cells: Option<Box<[usize]>> =
                    recognise.values.iter().map(|condition| cell_of(&condition.field)).collect();
                let Some(cells) = cells else { continue };
                if recognise.fields.iter().all(|name| cell_of(name).is_some())
                    && recognise.absent.iter().all(|name| cell_of(name).is_none())
                {
                    candidates.push(Candidate { mapping: at, recognise: recognise_at, cells });
                }
            }
        }
        candidates.into()
    }

    /// The plan of an event: its layout with the mapping that `?source=` named, or with the first that recognises it.
    pub(super) fn plan_of(
        &mut self,
        layout: usize,
        named: Option<usize>,
        row: &Row<'_, '_>,
        names: &mut Names,
    ) -> usize {
        let Some(known) = self.layouts.get(layout) else { return 0 };
        let mapping = named.or_else(|| self.recognised(known, row));
        let mapping = mapping.or_else(|| self.mappings.position(UNKNOWN, known.dataset)).unwrap_or(usize::MAX);
        match known.plans.iter().find(|(of, _)| *of == mapping) {
            Some((_, plan)) => *plan,
            None => self.new_plan(layout, mapping, names),
        }
    }

    fn recognised(&self, layout: &Layout, row: &Row<'_, '_>) -> Option<usize> {
        layout.candidates.iter().find_map(|candidate| {
            let mapping = self.mappings.get(candidate.mapping)?;
            let recognise = mapping.recognise.get(candidate.recognise)?;
            let mut conditions = recognise.values.iter().zip(&candidate.cells);
            conditions.all(|(condition, cell)| row.holds(*cell, condition)).then_some(candidate.mapping)
        })
    }

    /// The plan of this number.
    #[inline]
    pub(super) fn plan(&mut self, plan: usize) -> Option<(&Plan, &mut Family)> {
        let plan = self.plans.get(plan)?;
        Some((plan, self.families.get_mut(plan.family)?))
    }

    #[cold]
    fn new_plan(&mut self, layout: usize, mapping_at: usize, names: &mut Names) -> usize {
        let Some(known) = self.layouts.get(layout) else { return 0 };
        let (fields, dataset) = (known.fields.clone(), known.dataset);
        let mapping = self.mappings.get(mapping_at).cloned();
        let consume = mapping.as_ref().is_some_and(|mapping| mapping.consume);
        let (columns, ids, name) = match &mapping {
            Some(mapping) => {
                let cell_of = |name: &str| cell_of(name, &fields, names);
                (plan::columns(mapping, &cell_of), plan::ids(mapping, &cell_of), mapping.name.clone())
            }
            None => (Box::default(), Box::default(), Arc::from(UNKNOWN)),
        };
        let schema = dataset.core_schema();
        let consumed = |cell: usize| {
            let mut rules = columns.iter().flat_map(|column| &column.rules);
            consume && rules.any(|rule| rule.plain_cell() == Some(cell))
        };
        // `index_of` would write down all columns for each that is not there.
        let core_of = |name: &str| schema.fields().find(name).map(|(at, _)| at);
        let own = fields
            .iter()
            .enumerate()
            .filter(|(cell, field)| !consumed(*cell) && core_of(names.name(**field)).is_none());
        let own: Vec<FieldId> = own.map(|(_, field)| *field).collect();
        let family = self.family_for(dataset, &own);
        let mut slots = Vec::with_capacity(fields.len());
        for (cell, field) in fields.iter().enumerate() {
            let core = core_of(names.name(*field));
            slots.push(match (consumed(cell), core, self.families.get_mut(family)) {
                (true, _, _) => Slot::Consumed(raw_field(*field, &fields, names)),
                (false, Some(core), _) => Slot::Shadow(core, raw_field(*field, &fields, names)),
                (false, None, Some(family)) => Slot::Own(family.column_of(*field)),
                (false, None, None) => continue,
            });
        }
        let at = self.plans.len();
        self.plans.push(Plan { family, columns, ids, slots: slots.into(), name });
        if let Some(layout) = self.layouts.get_mut(layout) {
            layout.plans.push((mapping_at, at));
        }
        at
    }

    /// The family that has most in common with these own fields, or a new one.
    fn family_for(&mut self, dataset: Dataset, own: &[FieldId]) -> usize {
        let mut best: Option<(usize, usize, usize)> = None;
        let mut of_dataset = 0;
        for (at, family) in self.families.iter().enumerate().filter(|(_, family)| family.dataset == dataset) {
            of_dataset += 1;
            let common = own.iter().filter(|field| family.has(**field)).count();
            // A family of none and a layout of none have everything in common.
            let (common, all) = (common + 1, family.width() + own.len() - common + 1);
            if best.is_none_or(|(_, than, of)| common * of > than * all) {
                best = Some((at, common, all));
            }
        }
        match best {
            Some((at, common, all))
                if common * COMMON_SHARE.1 >= all * COMMON_SHARE.0 || of_dataset >= self.families_max =>
            {
                at
            }
            _ => {
                self.families.push(Family::new(dataset));
                self.families.len() - 1
            }
        }
    }
}

fn cell_of(name: &str, fields: &[FieldId], names: &Names) -> Option<usize> {
    let field = names.known_field(name)?;
    fields.iter().position(|known| *known == field)
}

/// The field under which the value of `field` is kept when its own name is taken: `raw.<name>`, or with more prefixes when the
/// event itself has a field of that name.
fn raw_field(field: FieldId, fields: &[FieldId], names: &mut Names) -> FieldId {
    let mut name = format!("{RAW_PREFIX}{}", names.name(field));
    loop {
        let raw = names.field(&name);
        if !fields.contains(&raw) {
            return raw;
        }
        name.insert_str(0, RAW_PREFIX);
    }
}

/// Whether an own field may not have this name, because the column has another meaning.
pub(super) fn is_reserved(name: &str) -> bool {
    name == REST_COLUMN
}
