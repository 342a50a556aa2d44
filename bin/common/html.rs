//! Text in a page of HTML.

/// Makes text safe between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write these.
            '\0'..='\x08' | '\x0b'..='\x1f' | '\x7f' => safe.push('\u{fffd}'),
            char => safe.push(char),
        }
    }
    safe
}
