//! Each message that this program makes has a question and an answer in docs/TROUBLESHOOTING.md.

use std::path::{Path, PathBuf};

/// The words of each message that are always the same, without quotes and marks.
fn fixed_words(message: &str) -> Vec<Vec<String>> {
    let mut fragments = vec![String::new()];
    let mut depth = 0;
    for letter in message.chars() {
        match letter {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                fragments.push(String::new());
            }
            letter if depth == 0 => fragments.last_mut().expect("one at least").push(letter),
            _ => {}
        }
    }
    fragments.iter().map(|fragment| words(fragment)).collect()
}

fn words(text: &str) -> Vec<String> {
    let plain = text.split_whitespace().map(|word| {
        word.trim_matches(|letter: char| !letter.is_alphanumeric() && letter != '-')
            .to_owned()
    });
    plain.filter(|word| !word.is_empty()).collect()
}

/// Where a message begins: behind these words, and so many arguments. What the log tells is one, too.
const MADE: [(&str, usize); 3] = [("Failure::new(", 1), (".note(", 0), ("report_once(", 0)];

/// The same of errors of the bridge, which say themselves what they are.
const SAID: [(&str, usize); 2] = [("write!(", 1), (".write_str(", 0)];

/// The messages that a file of ours makes.
fn messages(source: &str, makers: &[(&str, usize)]) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
    let mut messages = Vec::new();
    let begun = makers.iter().flat_map(|(maker, arguments)| {
        let made = source.split(maker).skip(1);
        made.filter_map(move |rest| rest.splitn(arguments + 1, ',').nth(*arguments))
    });
    for rest in begun {
        let rest = rest.trim_start().trim_start_matches('&');
        let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start();
        // What is no literal here is one elsewhere, or the words of QEMU.
        let Some(rest) = rest.strip_prefix('"') else {
            continue;
        };
        let mut letters = rest.chars();
        let mut message = String::new();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => break,
                '\\' => message.extend(letters.next().filter(|next| *next != '\n')),
                letter => message.push(letter),
            }
        }
        messages.push(message);
    }
    messages
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("our own sources") {
        let path = entry.expect("our own sources").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && path.file_name().is_some_and(|name| name != "tests.rs")
        {
            found.push(path);
        }
    }
}

/// These say all there is to say, and nobody reads them in a log.
const PLAIN: [&str; 4] = ["no such name", "no such inode", "still at work", "x"];

#[test]
fn each_message_has_its_answer_in_troubleshooting() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../docs/TROUBLESHOOTING.md"));
    let page = words(&page.expect("the page")).join(" ");
    let mut seen = 0;
    let mut missing = Vec::new();
    for (room, makers) in [("src", &MADE[..]), ("../qmpbridge/src", &SAID)] {
        let mut files = Vec::new();
        sources(&root.join(room), &mut files);
        for file in files {
            let source = std::fs::read_to_string(&file).expect("our own source");
            for message in messages(&source, makers) {
                let fragments = fixed_words(&message);
                let longest = fragments.iter().map(Vec::len).max().unwrap_or(0);
                if longest == 0 || PLAIN.contains(&message.as_str()) {
                    continue;
                }
                seen += 1;
                // A part of some words is enough, its first ones; of a short one all.
                let told = fragments
                    .iter()
                    .filter(|words| words.len() >= longest.min(3))
                    .any(|words| page.contains(&words[..words.len().min(5)].join(" ")));
                if !told {
                    missing.push(format!("{}: {message}", file.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no answer for\n{}", missing.join("\n"));
    assert!(seen > 300, "the sources were not understood: {seen}");
}
