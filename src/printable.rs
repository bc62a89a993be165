//! Text that a client or another node chose, made fit for people to read: in logs, lists, on terminals and
//! status pages. What is not for people (the protocol, pairing, comparing) uses the text itself.

use std::fmt::{self, Write};
use std::ops::RangeInclusive;

/// The most characters of a name that people are shown.
const LONGEST_NAME: usize = 128;
/// The most characters of any one text in a line of a log.
pub const LONGEST_TEXT: usize = 2048;
/// The characters of ASCII that are displayed as they are.
const PLAIN_ASCII: RangeInclusive<u8> = b' '..=b'~';

/// A text that a client, a server or another node chose. It is displayed in one line and cut when
/// it is long; what would act on a terminal, break the line or turn the direction of writing is
/// displayed as an escape sequence, such as `\n` or `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a> {
    text: &'a str,
    longest: usize,
}

impl<'a> Printable<'a> {
    /// Shows a name, a UUID or an address: up to 128 characters of it.
    pub const fn name(text: &'a str) -> Self {
        Self { text, longest: LONGEST_NAME }
    }

    /// Shows a message: up to 2048 characters of it.
    pub const fn text(text: &'a str) -> Self {
        Self { text, longest: LONGEST_TEXT }
    }

    /// Whether a character may be shown as it is.
    pub const fn is_plain(character: char) -> bool {
        !matches!(
            character,
            // Control characters, U+0085 among them.
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
            // Invisible, and such as turn the direction of writing. U+200C and U+200D are parts of
            // words and of pictures.
            | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shortened::write(f, self.longest, format_args!("{}", self.text))
    }
}

/// JSON with the same content, in which what is not [plain](Printable::is_plain) is escaped.
#[derive(Clone, Copy, Debug)]
pub struct PlainJson<'a>(pub &'a str);

impl fmt::Display for PlainJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plain = 0;
        // Valid JSON has such characters within texts only, or between its parts as white space.
        let odd =
            |character: char| !Printable::is_plain(character) && !"\r\n\t".contains(character);
        for (start, character) in self.0.char_indices().filter(|(_, character)| odd(*character)) {
            f.write_str(&self.0[plain..start])?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(f, "\\u{unit:04x}")?;
            }
            plain = start + character.len_utf8();
        }
        f.write_str(&self.0[plain..])
    }
}

/// Writes the debug form of a value as [`Printable::text`] would.
pub fn write_debug(out: &mut dyn Write, value: &dyn fmt::Debug) -> fmt::Result {
    Shortened::write(out, LONGEST_TEXT, format_args!("{value:?}"))
}

/// Escapes and cuts text written through it. A write after the cut is an error, so that nothing more
/// is formatted needlessly.
struct Shortened<'a> {
    out: &'a mut dyn Write,
    left: usize,
    is_cut: bool,
}

impl<'a> Shortened<'a> {
    fn write(out: &'a mut dyn Write, longest: usize, what: fmt::Arguments<'_>) -> fmt::Result {
        let mut shortened = Self { out, left: longest, is_cut: false };
        match shortened.write_fmt(what) {
            Err(_) if shortened.is_cut => Ok(()),
            written => written,
        }
    }
}

impl Shortened<'_> {
    fn write_one(&mut self, character: char) -> fmt::Result {
        if self.left == 0 {
            if !std::mem::replace(&mut self.is_cut, true) {
                self.out.write_char('…')?;
            }
            return Err(fmt::Error);
        }
        self.left -= 1;
        if Printable::is_plain(character) {
            self.out.write_char(character)
        } else {
            write!(self.out, "{}", character.escape_default())
        }
    }
}

impl Write for Shortened<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            // Most texts are ASCII throughout, and are written at once.
            let ascii = rest.bytes().take(self.left).take_while(|byte| PLAIN_ASCII.contains(byte));
            let ascii = ascii.count();
            let written = if ascii > 0 {
                self.out.write_str(&rest[..ascii])?;
                self.left -= ascii;
                ascii
            } else {
                self.write_one(character)?;
                character.len_utf8()
            };
            rest = &rest[written..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_shown_as_it_is() {
        for text in ["", "Küche", "日本", "a \\ \"b\" 'c'", "👩\u{200d}🚒", "{}"] {
            assert_eq!(Printable::name(text).to_string(), text);
        }
    }

    #[test]
    fn what_acts_on_a_terminal_or_breaks_the_line_is_escaped() {
        let hostile = "a\r\n\t\0\x1b[2J\x7f\u{85}\u{9b}31m\u{2028}\u{2029}\u{202e}\u{2066}\u{feff}";
        let shown = Printable::name(hostile).to_string();
        assert_eq!(
            shown,
            r"a\r\n\t\u{0}\u{1b}[2J\u{7f}\u{85}\u{9b}31m\u{2028}\u{2029}\u{202e}\u{2066}\u{feff}"
        );
        assert!(shown.chars().all(Printable::is_plain));
    }

    #[test]
    fn json_keeps_its_content() {
        let json = "{\"a\u{9b}\":\"ü \u{2028}\u{202e} \u{e0041}\"}\n";
        let plain = PlainJson(json).to_string();
        assert_eq!(plain, "{\"a\\u009b\":\"ü \\u2028\\u202e \\udb40\\udc41\"}\n");
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parsed(&plain), parsed(json));
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let name = "ü".repeat(LONGEST_NAME);
        assert_eq!(Printable::name(&name).to_string(), name);
        let longer = format!("{name}x");
        assert_eq!(Printable::name(&longer).to_string(), format!("{name}…"));
        let mixed = format!("{}ü\n{}", "a".repeat(LONGEST_NAME - 4), "b".repeat(3));
        let cut = format!(r"{}ü\n{}…", "a".repeat(LONGEST_NAME - 4), "b".repeat(2));
        assert_eq!(Printable::name(&mixed).to_string(), cut);
        let mut line = String::new();
        write_debug(&mut line, &vec!["\n"; 1_000_000]).expect("written");
        assert_eq!(line.chars().count(), LONGEST_TEXT + 1);
    }
}
