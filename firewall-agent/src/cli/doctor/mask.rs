//! Addresses in a text, replaced by numbers that say which ones are the same.
//! Never leaves an address because of what stands around it.

use std::net::IpAddr;

/// The addresses that were met, in that order.
#[derive(Debug, Default)]
pub(super) struct Mask {
    met: Vec<IpAddr>,
}

impl Mask {
    /// A text without addresses. What cannot be told apart from one, like `::`, goes too.
    pub(super) fn text(&mut self, text: &str) -> String {
        let may_be_part = |letter: char| letter.is_ascii_hexdigit() || ".:".contains(letter);
        let (mut masked, mut rest) = (String::new(), text);
        while !rest.is_empty() {
            let end = rest.find(|letter| !may_be_part(letter)).unwrap_or(rest.len());
            let (word, others) = rest.split_at(end);
            masked += &self.word(word);
            let end = others.find(may_be_part).unwrap_or(others.len());
            masked += &others[..end];
            rest = &others[end..];
        }
        masked
    }

    /// The longest address at the beginning of each part of a word, replaced: `192.0.2.1:80.`, say.
    fn word(&mut self, word: &str) -> String {
        for start in 0..word.len() {
            for end in (start + 1..=word.len()).rev() {
                if let Ok(address) = word[start..end].parse() {
                    let number = self.number(address);
                    let rest = self.word(&word[end..]);
                    return format!("{}address-{number}{rest}", &word[..start]);
                }
            }
        }
        word.to_owned()
    }

    fn number(&mut self, address: IpAddr) -> usize {
        let known = self.met.iter().position(|it| *it == address);
        let index = known.unwrap_or_else(|| {
            self.met.push(address);
            self.met.len() - 1
        });
        index + 1
    }
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn addresses_become_numbers_and_nothing_else_changes() {
        let mut mask = Mask::default();
        let mut check =
            |text: &str, expected: &str| assert_eq!(mask.text(text), expected, "{text}");
        check(
            "no address in 6.12.117, 1.1.3, nft:add 0x1f",
            "no address in 6.12.117, 1.1.3, nft:add 0x1f",
        );
        check("10.137.0.12 and 10.139.1.1/32", "address-1 and address-2/32");
        check("10.137.0.12:80/tcp, at last 10.139.1.1.", "address-1:80/tcp, at last address-2.");
        check("[fd09:24ef:4179::a89:c]:443", "[address-3]:443");
        check("(fd09:24EF:4179::a89:c%vif1.0)", "(address-3%vif1.0)");
        check("vif10.137.0.12", "vifaddress-1");
        check("::ffff:10.137.0.12", "address-4");
        check("", "");
    }
}
