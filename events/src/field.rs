//! The types of an event's own fields, and how two types of one field meet.

use arrow::datatypes::{DataType, Field};

/// An own field whose name is that of a core column of its dataset is stored under this prefix (`raw.severity`), unless
/// the core column already holds the same text.
pub const RAW_PREFIX: &str = "raw.";

/// The column that holds, as one JSON object, what has no column of its own: fields past the field bound of a dataset,
/// empty objects, and values too deep or too mixed for a typed column.
pub const REST_COLUMN: &str = "_rest";

/// The type of one value, or of the elements of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scalar {
    /// `true` or `false`.
    Bool = 0,
    /// 64-bit signed integer.
    Int = 1,
    /// 64-bit IEEE float.
    Float = 2,
    /// UTF-8 text: what every other type widens to.
    Text = 3,
}

/// The type of an own field: a scalar or a list of scalars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldType {
    /// The type of the value, or of each element.
    pub scalar: Scalar,
    /// Whether the field holds lists.
    pub list: bool,
}

impl FieldType {
    /// A boolean field.
    pub const BOOL: Self = Self { scalar: Scalar::Bool, list: false };
    /// An integer field.
    pub const INT: Self = Self { scalar: Scalar::Int, list: false };
    /// A float field.
    pub const FLOAT: Self = Self { scalar: Scalar::Float, list: false };
    /// A text field.
    pub const TEXT: Self = Self { scalar: Scalar::Text, list: false };

    /// A list of `scalar`.
    pub const fn list_of(scalar: Scalar) -> Self {
        Self { scalar, list: true }
    }

    /// The narrowest type that holds the values of both: int widens to float, everything else that differs to text, and a
    /// scalar beside a list becomes a list of one.
    pub fn join(self, other: Self) -> Self {
        use Scalar::{Float, Int, Text};
        let scalar = match (self.scalar, other.scalar) {
            (left, right) if left == right => left,
            (Int, Float) | (Float, Int) => Float,
            _ => Text,
        };
        Self { scalar, list: self.list || other.list }
    }

    /// The Arrow type of the field's column.
    pub fn data_type(self) -> DataType {
        let scalar = match self.scalar {
            Scalar::Bool => DataType::Boolean,
            Scalar::Int => DataType::Int64,
            Scalar::Float => DataType::Float64,
            Scalar::Text => DataType::Utf8,
        };
        if self.list { DataType::List(Field::new_list_field(scalar, true).into()) } else { scalar }
    }

    /// The field type of a column of this Arrow type; `None` for types that own fields never have.
    pub fn from_data_type(data_type: &DataType) -> Option<Self> {
        let scalar = |data_type: &DataType| match data_type {
            DataType::Boolean => Some(Scalar::Bool),
            DataType::Int64 => Some(Scalar::Int),
            DataType::Float64 => Some(Scalar::Float),
            DataType::Utf8 => Some(Scalar::Text),
            _ => None,
        };
        match data_type {
            DataType::List(item) => scalar(item.data_type()).map(Self::list_of),
            other => scalar(other).map(|scalar| Self { scalar, list: false }),
        }
    }

    /// One byte that stands for the type in files: bit 0–1 the scalar, bit 2 the list.
    pub fn code(self) -> u8 {
        self.scalar as u8 | (u8::from(self.list) << 2)
    }

    /// The type that [`code`](Self::code) stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        let scalar = match code & 3 {
            0 => Scalar::Bool,
            1 => Scalar::Int,
            2 => Scalar::Float,
            _ => Scalar::Text,
        };
        (code < 8).then_some(Self { scalar, list: code & 4 != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = FieldType> {
        (0..8).filter_map(FieldType::from_code)
    }

    #[test]
    fn join_is_commutative_idempotent_and_an_upper_bound() {
        for left in all() {
            assert_eq!(left.join(left), left);
            for right in all() {
                let joined = left.join(right);
                assert_eq!(joined, right.join(left));
                assert_eq!(joined.join(left), joined);
            }
        }
    }

    #[test]
    fn codes_and_arrow_types_round_trip() {
        for kind in all() {
            assert_eq!(FieldType::from_code(kind.code()), Some(kind));
            assert_eq!(FieldType::from_data_type(&kind.data_type()), Some(kind));
        }
        assert_eq!(FieldType::from_code(8), None);
    }
}
