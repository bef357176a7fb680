//! The date that chat templates are told: always the same.
//!
//! Some templates write today's date into the prompt. An answer would then depend on the day it was asked on, and
//! no two clusters, nor one cluster tomorrow, would agree. So `strftime_now` says 26 July 2024, the date that Llama
//! 3's templates fall back to where there is no clock. Who wants another date writes it into the system message.

use minijinja::{Error, ErrorKind};

/// The function `strftime_now`. Errors on a directive that no published template uses.
pub(crate) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => text.push_str(directive(chars.next())?),
            _ => text.push(c),
        }
    }
    Ok(text)
}

fn directive(letter: Option<char>) -> Result<&'static str, Error> {
    Ok(match letter {
        Some('d') => "26",
        Some('m') => "07",
        Some('b' | 'h') => "Jul",
        Some('B') => "July",
        Some('Y') => "2024",
        Some('y') => "24",
        Some('a') => "Fri",
        Some('A') => "Friday",
        Some('j') => "208",
        Some('H' | 'M' | 'S') => "00",
        Some('I') => "12",
        Some('p') => "AM",
        Some('F') => "2024-07-26",
        Some('T') => "00:00:00",
        Some('Z') => "UTC",
        Some('z') => "+0000",
        Some('%') => "%",
        _ => {
            let found = letter.map_or("%".to_owned(), |letter| format!("%{letter}"));
            let reason =
                format!("strftime_now does not know {found:?}; it knows %d %m %b %B %Y %y %a %A %j %H %M %S %I %p");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_always_the_same() {
        assert_eq!(strftime_now("%d %b %Y").unwrap(), "26 Jul 2024");
        assert_eq!(
            strftime_now("%A, %B %d, %H:%M 100%%").unwrap(),
            "Friday, July 26, 00:00 100%"
        );
        assert!(strftime_now("%Q").is_err());
        assert!(strftime_now("%").is_err());
    }
}
