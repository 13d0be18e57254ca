//! The order in which the rows of several sorted files follow one another, from their sort keys alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef};
use tidegate_events::{Dataset, FieldType, Scalar};

use super::columns::SortKeys;
use super::encode::CHUNK_ROWS;
use super::read::FileReader;
use crate::error::SinksError;

/// Consecutive rows of one input that go to one output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) input: u32,
    /// [`NOWHERE`] for rows that are left out.
    pub(crate) output: u32,
    pub(crate) rows: u32,
}

/// The output of rows that are left out.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// A failure, and which input it comes from (`usize::MAX`: none), for setting its file aside.
#[derive(Debug)]
pub(crate) struct InputError {
    pub(crate) input: usize,
    pub(crate) error: SinksError,
}

/// The columns of all files together, core columns first, own fields by name with the joined type.
pub(crate) fn joined_fields(dataset: Dataset, files: &[FileReader]) -> Result<Vec<FieldRef>, SinksError> {
    let core = dataset.core_schema();
    let mut core_fields: Vec<bool> = vec![false; core.fields().len()];
    let mut own: BTreeMap<String, (FieldType, bool)> = BTreeMap::new();
    for file in files {
        for (at, field) in file.schema().fields().iter().enumerate() {
            if let Some((at, _)) = core.fields().find(field.name()) {
                if let Some(found) = core_fields.get_mut(at) {
                    *found = true;
                }
                continue;
            }
            let kind = FieldType::from_data_type(field.data_type()).ok_or_else(|| {
                SinksError::Invalid(format!("own field {:?} has the type {}", field.name(), field.data_type()))
            })?;
            let exact = kind.scalar != Scalar::Int || file.fits_float(at);
            let joined = own.entry(field.name().clone()).or_insert((kind, true));
            *joined = (joined.0.join(kind), joined.1 && exact);
        }
    }
    let core = core.fields().iter().zip(core_fields).filter(|(_, found)| *found).map(|(field, _)| field.clone());
    let own = own.into_iter().map(|(name, (mut kind, exact))| {
        if kind.scalar == Scalar::Float && !exact {
            kind.scalar = Scalar::Text;
        }
        Arc::new(Field::new(name, kind.data_type(), true))
    });
    Ok(core.chain(own).collect())
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    org: Arc<str>,
    time: i64,
    input: usize,
}

/// The sort keys of one input, a batch at a time.
struct Input<'a> {
    batches: Box<dyn Iterator<Item = Result<SortKeys, SinksError>> + 'a>,
    keys: Option<SortKeys>,
    at: usize,
}

impl Input<'_> {
    /// Tenant and time of the row at hand, after the next batch was read if need be.
    fn head(&mut self) -> Result<Option<(&str, i64)>, SinksError> {
        while self.keys.as_ref().is_none_or(|keys| self.at >= keys.len()) {
            match self.batches.next() {
                Some(keys) => self.keys = Some(keys?),
                None => return Ok(None),
            }
            self.at = 0;
        }
        Ok(self.keys.as_ref().map(|keys| (keys.org(self.at), keys.time(self.at))))
    }
}

/// Merges the files by their sort keys. `place(tenant, time)` is called for each row, in order, and says its output.
pub(crate) fn merge_order(
    dataset: Dataset,
    files: &[FileReader],
    mut place: impl FnMut(&Arc<str>, i64) -> u32,
) -> Result<Vec<Run>, InputError> {
    let mut inputs = Vec::with_capacity(files.len());
    let mut heads = BinaryHeap::new();
    for (input, file) in files.iter().enumerate() {
        let failed = |error| InputError { input, error };
        let batches = Box::new(file.keys(dataset, CHUNK_ROWS).map_err(failed)?);
        let mut keys = Input { batches, keys: None, at: 0 };
        if let Some((org, time)) = keys.head().map_err(failed)? {
            heads.push(Reverse(Head { org: org.into(), time, input }));
        }
        inputs.push(keys);
    }
    let mut runs: Vec<Run> = Vec::new();
    while let Some(Reverse(Head { mut org, mut time, input })) = heads.pop() {
        let next = heads.peek();
        let Some(keys) = inputs.get_mut(input) else { break };
        // On with this input as long as its rows come before the head of every other one.
        loop {
            let output = place(&org, time);
            match runs.last_mut() {
                Some(run) if run.input as usize == input && run.output == output && run.rows < u32::MAX => {
                    run.rows += 1
                }
                _ => runs.push(Run { input: input as u32, output, rows: 1 }),
            }
            keys.at += 1;
            let Some((next_org, next_time)) = keys.head().map_err(|error| InputError { input, error })? else { break };
            if *org != *next_org {
                org = next_org.into();
            }
            time = next_time;
            if next.is_some_and(|Reverse(next)| (&*org, time) > (&*next.org, next.time)) {
                heads.push(Reverse(Head { org, time, input }));
                break;
            }
        }
    }
    Ok(runs)
}
