//! The text of a volume group's metadata: sections, numbers, strings and lists. Pure.
#![deny(clippy::arithmetic_side_effects)]

use crate::Error;

/// Sections within sections: there are four levels.
const DEPTH_MAX: usize = 8;
/// Values of one text: some for each of thousands of volumes.
const VALUES_MAX: usize = 1 << 20;

const DAMAGE: Error = Error::Corrupt("the text of a volume group's metadata");

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Vec<(String, Value)>),
}

impl Value {
    /// The value of a name in a section.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.section().iter().find(|(its, _)| its == name)?;
        Some(value)
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, Error> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            Some(Value::Text(_) | Value::List(_) | Value::Section(_)) | None => Err(DAMAGE),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, Error> {
        match self.get(name) {
            Some(Value::Text(text)) => Ok(text),
            Some(Value::Number(_) | Value::List(_) | Value::Section(_)) | None => Err(DAMAGE),
        }
    }

    /// A list; nothing where there is none.
    pub(super) fn list(&self, name: &str) -> &[Value] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            Some(Value::Number(_) | Value::Text(_) | Value::Section(_)) | None => &[],
        }
    }

    /// What is in a section; nothing where it is none.
    pub(super) fn section(&self) -> &[(String, Value)] {
        match self {
            Value::Section(entries) => entries,
            Value::Number(_) | Value::Text(_) | Value::List(_) => &[],
        }
    }
}

/// The whole text as one section.
pub(super) fn parse(text: &[u8]) -> Result<Value, Error> {
    // What is behind a NUL is padding.
    let end = text.iter().position(|byte| *byte == 0);
    let mut parser = Parser {
        rest: text.get(..end.unwrap_or(text.len())).ok_or(DAMAGE)?,
        values: 0,
    };
    parser.section(0)
}

struct Parser<'a> {
    rest: &'a [u8],
    values: usize,
}

impl Parser<'_> {
    /// Entries up to the closing brace, or at depth 0 to the end.
    fn section(&mut self, depth: usize) -> Result<Value, Error> {
        if depth > DEPTH_MAX {
            return Err(DAMAGE);
        }
        let mut entries = Vec::new();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(Value::Section(entries)),
                Some(b'}') if depth > 0 => {
                    self.skip(1);
                    return Ok(Value::Section(entries));
                }
                Some(_) => {}
                None => return Err(DAMAGE),
            }
            let name = self.word()?;
            let value = match self.peek() {
                Some(b'{') => {
                    self.skip(1);
                    self.section(depth.saturating_add(1))?
                }
                Some(b'=') => {
                    self.skip(1);
                    self.value()?
                }
                Some(_) | None => return Err(DAMAGE),
            };
            self.count()?;
            entries.push((name, value));
        }
    }

    fn value(&mut self) -> Result<Value, Error> {
        self.count()?;
        match self.peek() {
            Some(b'[') => {
                self.skip(1);
                let mut list = Vec::new();
                loop {
                    match self.peek() {
                        Some(b']') => {
                            self.skip(1);
                            return Ok(Value::List(list));
                        }
                        Some(b',') => self.skip(1),
                        Some(b'[') | None => return Err(DAMAGE),
                        Some(_) => list.push(self.value()?),
                    }
                }
            }
            Some(b'"') => self.string().map(Value::Text),
            Some(_) => {
                let word = self.word()?;
                // A negative number, or one with a point, is nothing that is asked for.
                Ok(word.parse().map_or(Value::Text(word), Value::Number))
            }
            None => Err(DAMAGE),
        }
    }

    fn string(&mut self) -> Result<String, Error> {
        self.skip(1);
        let mut bytes = Vec::new();
        loop {
            match self.rest {
                [b'\\', byte, ..] => {
                    bytes.push(*byte);
                    self.skip(2);
                }
                [b'"', ..] => {
                    self.skip(1);
                    return Ok(String::from_utf8_lossy(&bytes).into_owned());
                }
                [byte, ..] => {
                    bytes.push(*byte);
                    self.skip(1);
                }
                [] => return Err(DAMAGE),
            }
        }
    }

    fn word(&mut self) -> Result<String, Error> {
        self.peek();
        let is_in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(byte);
        let end = self.rest.iter().position(|byte| !is_in_word(byte));
        let end = end.unwrap_or(self.rest.len());
        let word = self.rest.get(..end).unwrap_or_default();
        if word.is_empty() {
            return Err(DAMAGE);
        }
        let word = String::from_utf8_lossy(word).into_owned();
        self.skip(end);
        Ok(word)
    }

    /// What comes next that is no space and no comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.rest.first()? {
                byte if byte.is_ascii_whitespace() => self.skip(1),
                b'#' => {
                    let end = self.rest.iter().position(|byte| *byte == b'\n');
                    self.skip(end.unwrap_or(self.rest.len()));
                }
                byte => return Some(*byte),
            }
        }
    }

    fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    fn count(&mut self) -> Result<(), Error> {
        self.values = self.values.saturating_add(1);
        match self.values {
            ..=VALUES_MAX => Ok(()),
            _ => Err(DAMAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Value, parse};

    #[test]
    fn sections_and_values() {
        let text = b"# a comment\nvg {\n\tid = \"a\\\"b\" n = 12 # of them\n l = [\"x\", 3]\nempty = []\n s { t = -1 }\n}\nz = 1.5\0rest";
        let whole = parse(text).expect("it is right");
        let vg = whole.get("vg").expect("a section");
        assert_eq!(vg.text("id").expect("text"), "a\"b");
        assert_eq!(vg.number("n").expect("a number"), 12);
        assert_eq!(vg.list("l"), [Value::Text("x".into()), Value::Number(3)]);
        assert_eq!(vg.list("empty"), []);
        assert!(vg.get("s").is_some_and(|s| s.number("t").is_err()));
        assert!(whole.number("z").is_err());
    }

    #[test]
    fn what_does_not_end_or_is_too_deep_is_damage() {
        for text in [
            "a {",
            "a = ",
            "a = [",
            "a = \"",
            "= 3",
            "a }",
            "a = [[1]]",
            "\u{1}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("a { ".repeat(100).as_bytes()).is_err());
    }
}
