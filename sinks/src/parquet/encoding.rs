//! How the values of one column are encoded: by a look at a sample of them, because a dictionary of values that hardly repeat costs a
//! hash and a comparison for each of them, and gains nothing.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Field, Int64Type};
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterPropertiesPtr};
use parquet::schema::types::ColumnPath;
use tidegate_events::Dataset;

/// Values that are looked at, spread over all that are there.
const SAMPLE: usize = 1_024;
/// With at least this share of distinct values in the sample, a column has no dictionary.
const DISTINCT_SHARE: (usize, usize) = (19, 20);
/// Of texts with more distinct values in the sample, neither bounds nor those of pages are kept: rows are sorted by tenant and time, so
/// nearly every page has some of the first and some of the last of them, and each value costs two comparisons.
const BOUNDED_DISTINCT_MAX: usize = 32;
/// A column with fewer values is small however it is encoded.
const VALUES_MIN: usize = 4 * SAMPLE;

/// The properties for a column of a row group that has (or begins with) these values. Of texts that hardly repeat there are no
/// statistics: the least and the greatest of a page full of random ids say nothing.
pub(crate) fn for_values(properties: &WriterPropertiesPtr, field: &Field, values: &ArrayRef) -> WriterPropertiesPtr {
    let path = || ColumnPath::new(vec![field.name().clone()]);
    // Ids that we make sort by time, as the rows do: neighbours begin alike, and their bounds say something.
    if field.name() == Dataset::EVENT_ID {
        let builder = properties.as_ref().clone().into_builder();
        let builder = builder.set_column_dictionary_enabled(path(), false);
        return Arc::new(builder.set_column_encoding(path(), Encoding::DELTA_BYTE_ARRAY).build());
    }
    let texts = sample(
        values
            .as_string_opt::<i32>()
            .map(|texts| move |at| if texts.is_null(at) { None } else { Some(texts.value(at).as_bytes().to_vec()) }),
        values.len(),
    );
    let ints = sample(
        values
            .as_primitive_opt::<Int64Type>()
            .map(|ints| move |at| if ints.is_null(at) { None } else { Some(ints.value(at)) }),
        values.len(),
    );
    let mut builder = properties.as_ref().clone().into_builder();
    match (texts, ints) {
        (Some(texts), _) if texts.hardly_repeats() => {
            builder = builder.set_column_dictionary_enabled(path(), false);
            builder = builder.set_column_encoding(path(), Encoding::DELTA_LENGTH_BYTE_ARRAY);
            builder = builder.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
        // Rows are sorted by tenant, so the bounds of tenants say all.
        (Some(texts), _) if texts.distinct > BOUNDED_DISTINCT_MAX && field.name() != Dataset::ORG_ID => {
            builder = builder.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
        (_, Some(ints)) if ints.hardly_repeats() => {
            builder = builder.set_column_dictionary_enabled(path(), false);
            builder = builder.set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
        }
        _ => return properties.clone(),
    }
    Arc::new(builder.build())
}

/// What a look at some values showed.
#[derive(Debug, Clone, Copy)]
struct Sample {
    distinct: usize,
    looked: usize,
}

impl Sample {
    /// Whether hardly any value comes twice.
    fn hardly_repeats(self) -> bool {
        self.looked >= SAMPLE / 2 && self.distinct * DISTINCT_SHARE.1 >= self.looked * DISTINCT_SHARE.0
    }
}

/// Looks at some values. `value` gives the one at a place; nulls do not count. `None` when they are too few to care.
fn sample<T: std::hash::Hash + Eq>(value: Option<impl Fn(usize) -> Option<T>>, len: usize) -> Option<Sample> {
    let value = value.filter(|_| len >= VALUES_MIN)?;
    let mut seen = HashSet::with_capacity(SAMPLE);
    let mut looked = 0;
    for at in (0..len).step_by((len / SAMPLE).max(1)) {
        if let Some(value) = value(at) {
            looked += 1;
            seen.insert(value);
        }
    }
    Some(Sample { distinct: seen.len(), looked })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::DataType;
    use parquet::file::properties::WriterProperties;

    use super::*;

    #[test]
    fn only_values_that_repeat_have_a_dictionary() {
        let texts = |distinct: usize| -> ArrayRef {
            Arc::new((0..8_192).map(|at| Some(format!("value {}", at * 7919 % distinct))).collect::<StringArray>())
        };
        let ints: ArrayRef = Arc::new(Int64Array::from_iter_values((0..8_192).map(|at| at * 7919)));
        let sparse: ArrayRef =
            Arc::new((0..8_192).map(|at| (at % 64 == 0).then(|| at.to_string())).collect::<StringArray>());
        for (name, values, dictionary, statistics) in [
            ("id", texts(8_192), false, EnabledStatistics::None),
            ("user", texts(1_000), true, EnabledStatistics::None),
            ("org_id", texts(1_000), true, EnabledStatistics::Page),
            ("region", texts(30), true, EnabledStatistics::Page),
            ("action", texts(3), true, EnabledStatistics::Page),
            ("event_id", texts(8_192), false, EnabledStatistics::Page),
            ("bytes", ints, false, EnabledStatistics::Page),
            ("sparse", sparse, true, EnabledStatistics::None),
            ("short", texts(8_192).slice(0, 100), true, EnabledStatistics::Page),
        ] {
            let base = WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Page).build();
            let field = Field::new(name, DataType::Utf8, true);
            let made = for_values(&Arc::new(base), &field, &values);
            let path = ColumnPath::new(vec![name.to_owned()]);
            assert_eq!(made.dictionary_enabled(&path), dictionary, "{name}");
            assert_eq!(made.statistics_enabled(&path), statistics, "{name}");
        }
    }
}
