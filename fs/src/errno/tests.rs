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

/// The messages that a file of ours makes: the text after each `Failure::new(ERRNO,`.
fn messages(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
    let mut messages = Vec::new();
    for made in source.split("Failure::new(").skip(1) {
        let Some((_, rest)) = made.split_once(',') else {
            continue;
        };
        let rest = rest.trim_start();
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
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut seen = 0;
    let mut missing = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(&file).expect("our own source");
        for message in messages(&source) {
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
    assert!(missing.is_empty(), "no answer for\n{}", missing.join("\n"));
    assert!(seen > 80, "the sources were not understood: {seen}");
}
