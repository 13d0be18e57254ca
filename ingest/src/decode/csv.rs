//! CSV after RFC 4180: records of a header and rows, `"` quotes a field and `""` is a quote in it. Fields are text; what they
//! become is up to the mapping.

use std::ops::Range;

use memchr::{memchr, memchr3};

/// Reads records from a body.
#[derive(Debug)]
pub(super) struct CsvReader<'b> {
    bytes: &'b [u8],
    at: usize,
    fields: Vec<Field>,
    /// The text of fields with quotes in them.
    unquoted: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Field {
    range: Range<usize>,
    in_unquoted: bool,
    quoted: bool,
}

/// A record that was read, or why the rest of the body cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Where it stands in the body.
    Row(Range<usize>),
    /// A quoted field that starts here does not end, or has text after its quote.
    Broken(usize, &'static str),
}

impl<'b> CsvReader<'b> {
    pub(super) fn new(bytes: &'b [u8], at: usize) -> Self {
        Self { bytes, at, fields: Vec::new(), unquoted: Vec::new() }
    }

    /// Where the next record starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next record that is not an empty line.
    pub(super) fn next_record(&mut self) -> Option<Record> {
        while let Some(b'\r' | b'\n') = self.bytes.get(self.at) {
            self.at += 1;
        }
        let start = self.at;
        if start >= self.bytes.len() {
            return None;
        }
        self.fields.clear();
        self.unquoted.clear();
        loop {
            let field = match self.bytes.get(self.at) {
                Some(b'"') => match self.quoted() {
                    Ok(field) => field,
                    Err(what) => {
                        // The next record is sought after this line, so that one stray quote does not cost the rest.
                        return Some(Record::Broken(start, what));
                    }
                },
                _ => self.plain(),
            };
            self.fields.push(field);
            match self.bytes.get(self.at) {
                Some(b',') => self.at += 1,
                _ => break,
            }
        }
        let end = self.at;
        self.at += usize::from(self.bytes.get(self.at) == Some(&b'\r'));
        self.at += usize::from(self.bytes.get(self.at) == Some(&b'\n'));
        Some(Record::Row(start..end))
    }

    /// Goes on after the line of a broken record; where that line ends.
    pub(super) fn skip_line(&mut self, start: usize) -> usize {
        let rest = self.bytes.get(start..).unwrap_or_default();
        let end = start + memchr(b'\n', rest).unwrap_or(rest.len());
        self.at = (end + 1).min(self.bytes.len());
        end
    }

    fn plain(&mut self) -> Field {
        let start = self.at;
        let rest = self.bytes.get(start..).unwrap_or_default();
        self.at = start + memchr3(b',', b'\n', b'\r', rest).unwrap_or(rest.len());
        Field { range: start..self.at, in_unquoted: false, quoted: false }
    }

    fn quoted(&mut self) -> Result<Field, &'static str> {
        let start = self.at + 1;
        let mut at = start;
        let mut copied_from = None;
        let mut copied = start;
        loop {
            let rest = self.bytes.get(at..).unwrap_or_default();
            at += memchr(b'"', rest).ok_or("a quoted field does not end")?;
            match self.bytes.get(at + 1) {
                Some(b'"') => {
                    copied_from.get_or_insert(self.unquoted.len());
                    self.unquoted.extend_from_slice(self.bytes.get(copied..=at).unwrap_or_default());
                    at += 2;
                    copied = at;
                }
                None | Some(b',' | b'\n' | b'\r') => break,
                Some(_) => return Err("there is text after the quote that ends a field"),
            }
        }
        self.at = at + 1;
        Ok(match copied_from {
            None => Field { range: start..at, in_unquoted: false, quoted: true },
            Some(from) => {
                self.unquoted.extend_from_slice(self.bytes.get(copied..at).unwrap_or_default());
                Field { range: from..self.unquoted.len(), in_unquoted: true, quoted: true }
            }
        })
    }

    /// How many fields the record has.
    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// The bytes of each field of the record, and whether it was quoted.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.fields.iter().map(|field| {
            let from: &[u8] = if field.in_unquoted { &self.unquoted } else { self.bytes };
            (from.get(field.range.clone()).unwrap_or_default(), field.quoted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<Result<Vec<String>, &'static str>> {
        let mut reader = CsvReader::new(text.as_bytes(), 0);
        let mut records = Vec::new();
        while let Some(record) = reader.next_record() {
            records.push(match record {
                Record::Row(_) => {
                    Ok(reader.fields().map(|(field, _)| String::from_utf8(field.to_vec()).expect("text")).collect())
                }
                Record::Broken(start, what) => {
                    reader.skip_line(start);
                    Err(what)
                }
            });
        }
        records
    }

    #[test]
    fn records_are_read_as_rfc_4180_says() {
        let row = |fields: &[&str]| Ok(fields.iter().map(|field| (*field).to_owned()).collect());
        for (text, want) in [
            ("a,b\r\n1,2\r\n", vec![row(&["a", "b"]), row(&["1", "2"])]),
            ("a,b\n\n1,\n", vec![row(&["a", "b"]), row(&["1", ""])]),
            (r#""a,b","c""d""",e"#, vec![row(&["a,b", "c\"d\"", "e"])]),
            ("\"two\nlines\",x", vec![row(&["two\nlines", "x"])]),
            ("a\"b,c", vec![row(&["a\"b", "c"])]),
            ("\"\",\"\"\"\"", vec![row(&["", "\""])]),
            ("\"a\"b,c\nd,e", vec![Err("there is text after the quote that ends a field"), row(&["d", "e"])]),
            ("\"a,c\nd,e", vec![Err("a quoted field does not end"), row(&["d", "e"])]),
        ] {
            assert_eq!(read(text), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_quoted_is_read_back(rows in prop::collection::vec(prop::collection::vec(".{0,8}", 1..5), 1..6)) {
            let quote = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let line = |row: &Vec<String>| row.iter().map(quote).collect::<Vec<_>>().join(",");
            let text = rows.iter().map(line).collect::<Vec<_>>().join("\r\n");
            let got: Vec<Vec<String>> = read(&text).into_iter().map(|row| row.expect("a row")).collect();
            prop_assert_eq!(got, rows);
        }

        #[test]
        fn any_text_is_safe(text in "[a\",\r\n]{0,60}") {
            read(&text);
        }
    }
}
