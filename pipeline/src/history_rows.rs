//! Reading history from a store that answers questions itself, such as a database: what is asked, and the seam.
//!
//! A question is closed: every part of it is one of the enums below, with values beside them and never within a text. A
//! store that cannot answer a part exactly must not be asked it; `tidegate_query` asks only what is listed here.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use thiserror::Error;
use tidegate_events::Dataset;
use tokio::sync::mpsc;

use crate::log::Offset;

/// A store that answers questions about its rows.
pub trait HistoryRows: std::fmt::Debug + Send + Sync + 'static {
    /// Starts to answer. Each batch has the columns of `ask.schema` and, last, `org_id` as text: whose the rows are. Dropping
    /// the receiver stops the work, at the store too. May be called on any thread.
    fn read(&self, ask: RowsAsk) -> mpsc::Receiver<Result<RecordBatch, HistoryError>>;

    /// Whether it is known what the store holds: until then nobody can say which columns a table has.
    ///
    /// # Errors
    /// Why it is not known yet.
    fn known(&self) -> Result<(), HistoryError> {
        Ok(())
    }
}

/// Why history could not be read. The messages are for the log of the program: they may name machines and tables.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum HistoryError {
    /// The store or the way to it: it cannot be reached, or does not answer as it should. Trying again may work.
    #[error("history cannot be read: {0}")]
    Unavailable(String),
    /// Load: all connections to the store are taken. Trying again may work.
    #[error("history cannot be read: {0}")]
    Busy(String),
    /// The question: the store did not answer it in time.
    #[error("history did not answer in time")]
    Timeout,
    /// A bug: the question or the answer does not fit the store.
    #[error("history does not fit: {0}")]
    Invalid(String),
}

/// A question about the rows of one dataset and some tenants, below the cursors of a snapshot.
#[derive(Debug, Clone)]
pub struct RowsAsk {
    /// The table.
    pub dataset: Dataset,
    /// Whose rows.
    pub orgs: Arc<[Arc<str>]>,
    /// Rows of the ingest log below this offset.
    pub log_cursor: Offset,
    /// Rows of the output log below this offset.
    pub output_cursor: Offset,
    /// Whether rows of other installations that write to the same store are meant too.
    pub others: bool,
    /// What each column of the answer is.
    pub outputs: Vec<Output>,
    /// The columns of the answer, one for each output: names and types.
    pub schema: SchemaRef,
    /// Whether rows that are equal in the outputs that are no aggregates are one row of the answer. Then, and only then,
    /// outputs may be aggregates. The rows of each tenant are grouped apart.
    pub grouped: bool,
    /// What a row must meet, all of it.
    pub filters: Vec<Filter>,
    /// The order of the answer, as far as it matters for what `limit` leaves out. Not with `grouped`.
    pub order: Vec<Order>,
    /// Most rows of the answer.
    pub limit: Option<u64>,
}

/// The name of a column.
pub type ColumnName = Arc<str>;

/// One column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A column of the table: a core column, an own field or `_rest`.
    Column(ColumnName),
    /// A core column of time, cut to a unit in UTC.
    TimeTrunc(TimeUnit, ColumnName),
    /// A core column of time, cut to the start of a stretch of `width_us` (µs, > 0) counted from `origin_us`.
    TimeBin {
        /// How long a stretch is.
        width_us: i64,
        /// Where one of them starts.
        origin_us: i64,
        /// Which column.
        column: ColumnName,
    },
    /// How many rows. `Int64`, never null.
    Count,
    /// In how many rows a core column has a value. `Int64`, never null.
    CountOf(ColumnName),
    /// The smallest value of a core column of integers, decimals, times or text (by its bytes).
    Min(ColumnName),
    /// The largest.
    Max(ColumnName),
    /// The sum of a core column of integers (`Int64`, wraps around) or decimals.
    Sum(ColumnName),
}

impl Output {
    /// Whether it is computed from all rows of a group.
    pub fn is_aggregate(&self) -> bool {
        matches!(self, Self::Count | Self::CountOf(_) | Self::Min(_) | Self::Max(_) | Self::Sum(_))
    }
}

/// A unit that times are cut to. Weeks start on Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds.
    Second,
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Days.
    Day,
    /// Weeks.
    Week,
    /// Months.
    Month,
    /// Quarters.
    Quarter,
    /// Years.
    Year,
}

impl TimeUnit {
    /// All units.
    pub const ALL: [Self; 8] =
        [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Quarter, Self::Year];

    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Quarter => "quarter",
            Self::Year => "year",
        }
    }
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text without NUL.
    Text(Arc<str>),
    /// An integer.
    Int(i64),
    /// A finite float.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// Microseconds since the epoch, UTC.
    Time(i64),
    /// `digits / 10^scale`.
    Decimal {
        /// The number without its point.
        digits: i128,
        /// How many digits are after the point.
        scale: u8,
    },
}

/// How two values are compared. Text goes by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Eq,
    /// `<>`
    NotEq,
    /// `<`
    Lt,
    /// `<=`
    LtEq,
    /// `>`
    Gt,
    /// `>=`
    GtEq,
}

impl Comparison {
    /// As SQL writes it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::NotEq => "<>",
            Self::Lt => "<",
            Self::LtEq => "<=",
            Self::Gt => ">",
            Self::GtEq => ">=",
        }
    }
}

/// A condition on one row, with SQL's logic of three values. A core column is compared with a value of its own type.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of them.
    And(Vec<Filter>),
    /// One of them.
    Or(Vec<Filter>),
    /// Not this. Holds no `Own…`.
    Not(Box<Filter>),
    /// A core column and a constant.
    Compare(ColumnName, Comparison, Value),
    /// A core column has one of these values, of which there is at least one.
    In(ColumnName, Vec<Value>),
    /// A core column has no value.
    IsNull(ColumnName),
    /// A core column of text is like a pattern, in which `%` is any text and `_` any character. The pattern has no backslash.
    Like(ColumnName, Arc<str>),
    /// An own field has a value. May be met by more rows, as the other conditions on own fields.
    OwnHas(ColumnName),
    /// An own field is one of these texts, integers or booleans.
    OwnIn(ColumnName, Vec<Value>),
    /// An own field of numbers is less or more than a number.
    OwnCompare(ColumnName, Comparison, Value),
}

/// One step of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// By which core column. Text goes by its bytes.
    pub column: ColumnName,
    /// The largest first.
    pub descending: bool,
    /// Rows without a value first.
    pub nulls_first: bool,
}
