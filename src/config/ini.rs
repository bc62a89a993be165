//! INI files as Qt's `QSettings` writes and reads them, for [`legacy`](super::legacy): sections,
//! keys with `%`-escapes, values with quotation marks and `\`-escapes. What the keys mean is not
//! known here.

use std::iter::Peekable;
use std::str::Chars;

/// The content of a file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ini {
    /// All keys with their values, in their order.
    pub(super) entries: Vec<Entry>,
    /// All sections, also those without keys.
    pub(super) sections: Vec<String>,
    /// The numbers of lines that are nothing of this.
    pub(super) not_understood: Vec<usize>,
}

/// A key and its value.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// Empty in front of the first section, and in `[General]`, which is the same.
    pub(super) section: String,
    pub(super) key: String,
    /// A list is left as it is written, with its commas.
    pub(super) value: String,
}

/// Reads a file.
pub(super) fn parse(text: &str) -> Ini {
    let mut ini = Ini::default();
    let mut section = String::new();
    for (number, line) in logical_lines(text) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = section_name(name.trim());
            ini.sections.push(section.clone());
        } else if let Some((key, value)) = line.split_once('=')
            && !key.trim().is_empty()
        {
            let (section, key) = (section.clone(), unescape_key(key.trim()));
            ini.entries.push(Entry { section, key, value: unescape_value(value) });
        } else {
            ini.not_understood.push(number);
        }
    }
    ini
}

/// Lines with their numbers, without white space around them, comments and empty ones. A line
/// within quotation marks or with `\` at its end goes on in the next one.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut chars = text.trim_start_matches('\u{feff}').chars().peekable();
    let (mut number, mut first) = (1, 1);
    let mut line = String::new();
    let mut is_quoted = false;
    while let Some(char) = chars.next() {
        match char {
            '\n' => {
                number += 1;
                if is_quoted {
                    line.push('\n');
                } else {
                    lines.push((first, std::mem::take(&mut line)));
                    first = number;
                }
            }
            '\\' => match chars.next() {
                Some('\n') => number += 1,
                Some('\r') if chars.next_if_eq(&'\n').is_some() => number += 1,
                Some(escaped) => line.extend(['\\', escaped]),
                None => {}
            },
            ';' if !is_quoted => skip_line(&mut chars),
            '#' if line.trim().is_empty() => skip_line(&mut chars),
            '"' => {
                is_quoted = !is_quoted;
                line.push('"');
            }
            _ => line.push(char),
        }
    }
    lines.push((first, line));
    lines.retain_mut(|(_, line)| {
        *line = line.trim().to_owned();
        !line.is_empty()
    });
    lines
}

fn skip_line(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|char| *char != '\n').is_some() {}
}

/// `General` is no section, and a section of that name is called `%General`.
fn section_name(name: &str) -> String {
    if name.eq_ignore_ascii_case("general") {
        String::new()
    } else if name.eq_ignore_ascii_case("%general") {
        name[1..].to_owned()
    } else {
        unescape_key(name)
    }
}

/// `%20` and `%U20AC` stand for characters. What only looks like it is left as it is.
fn unescape_key(key: &str) -> String {
    let mut plain = String::with_capacity(key.len());
    let mut rest = key;
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let (digits, skipped) = match behind.strip_prefix('U') {
            Some(long) => (long.get(..4), 5),
            None => (behind.get(..2), 2),
        };
        if let Some(char) = digits.and_then(character) {
            plain.push(char);
            rest = &behind[skipped..];
        } else {
            plain.push('%');
            rest = behind;
        }
    }
    plain + rest
}

/// Takes quotation marks away and `\`-escapes back. White space counts only within the marks.
fn unescape_value(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    // After the last character that is not white space outside of quotation marks.
    let mut end = 0;
    let mut is_quoted = false;
    let mut chars = value.trim().chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' => is_quoted = !is_quoted,
            '\\' => plain.extend(unescape(&mut chars)),
            _ => plain.push(char),
        }
        if is_quoted || !char.is_whitespace() {
            end = plain.len();
        }
    }
    plain.truncate(end);
    plain
}

/// The character that an escape after a `\` means.
fn unescape(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    Some(match chars.next()? {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        'x' => return character(&digits(chars, 16)),
        first @ '0'..='7' => {
            let digits = format!("{first}{}", digits(chars, 8));
            return u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32);
        }
        other => other,
    })
}

fn digits(chars: &mut Peekable<Chars<'_>>, radix: u32) -> String {
    std::iter::from_fn(|| chars.next_if(|char| char.is_digit(radix))).collect()
}

fn character(hexadecimal: &str) -> Option<char> {
    let is_number = hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
    let code = u32::from_str_radix(hexadecimal, 16).ok();
    code.filter(|_| is_number).and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(written: &str) -> String {
        let entries = parse(&format!("key={written}\nlast=1")).entries;
        assert_eq!(entries.len(), 2, "{written}");
        entries.into_iter().next().expect("two").value
    }

    #[test]
    fn sections_keys_and_values() {
        let text = "\u{feff}top=1\r\n; a comment\r\n# another\r\n\r\n[One]\r\na = x y \r\nb=\r\n\
                    [General]\nc=2\n[Empty]\n[%General]\nd=3=4\n  [Two words]  \nnothing\n=5\n\
                    e%20%41%U20AC%2=6";
        let ini = parse(text);
        let entries = ini.entries.iter();
        let found: Vec<_> = entries.map(|e| (&*e.section, &*e.key, &*e.value)).collect();
        assert_eq!(
            found,
            [
                ("", "top", "1"),
                ("One", "a", "x y"),
                ("One", "b", ""),
                ("", "c", "2"),
                ("General", "d", "3=4"),
                ("Two words", "e A€%2", "6"),
            ]
        );
        assert_eq!(ini.sections, ["One", "", "Empty", "General", "Two words"]);
        assert_eq!(ini.not_understood, [14, 15]);
    }

    #[test]
    fn values_with_marks_and_escapes() {
        for (written, expected) in [
            ("plain", "plain"),
            ("\"with ; and , and # \"", "with ; and , and # "),
            ("x ; a comment with \"", "x"),
            ("a#b", "a#b"),
            ("a, b,c", "a, b,c"),
            (r#""a \"b\" \\ c""#, r#"a "b" \ c"#),
            (r"gr\xfc\x20\x20AC", "gr\u{fc} €"),
            (r"a\n\tb\101", "a\n\tbA"),
            (" \" a \" b \" \" ", " a  b  "),
            ("one \\\n  two", "one   two"),
            ("\"one\ntwo\"", "one\ntwo"),
            ("@Invalid()", "@Invalid()"),
        ] {
            assert_eq!(value(written), expected, "{written:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "([\\[\\]=\"\\\\;#%xU0-9a-f \n\r€]|General){0,60}") {
            parse(&text);
        }
    }
}
