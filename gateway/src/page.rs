//! The live page: files that are part of this program, so that it works where no network is.

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct File {
    pub content_type: &'static str,
    pub content: &'static [u8],
}

macro_rules! files {
    ($($name:literal,)*) => {
        /// What the page is made of.
        const FILES: &[(&str, &[u8])] = &[$(($name, include_bytes!(concat!("../page/", $name))),)*];
    };
}

files! {
    "app.js",
    "charts.js",
    "detail.js",
    "dom.js",
    "feed.js",
    "fields.js",
    "format.js",
    "gauges.js",
    "groups.js",
    "head.js",
    "history.js",
    "icon.svg",
    "key.js",
    "movements.js",
    "news.js",
    "playground.js",
    "rail.js",
    "sequences.js",
    "server_events.js",
    "style.css",
}

pub fn index() -> File {
    File {
        content_type: "text/html; charset=utf-8",
        content: include_bytes!("../page/index.html"),
    }
}

/// `None` if there is no such file.
pub fn file(name: &str) -> Option<File> {
    let (_, content) = FILES.iter().find(|(known, _)| *known == name)?;
    let content_type = match name.rsplit('.').next()? {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => return None,
    };
    Some(File { content_type, content })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let names = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let found: BTreeSet<String> = names.filter(|name| name != "index.html").collect();
        let served: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(found, served);
        assert!(served.iter().all(|name| file(name).is_some()));
        assert!(file("../Cargo.toml").is_none() && file("index.html").is_none());
    }
}
