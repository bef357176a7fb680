//! A model hub on this machine, as far as its clients use it: the list of a repository's files, and the files.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Plain data.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    /// By repository, then by name.
    pub repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Asked of every request, if there is one.
    pub token: Option<String>,
}

/// Ends when it is dropped.
#[derive(Debug)]
pub struct HubServer {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HubServer {
    pub fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let ends = Arc::<AtomicBool>::default();
        let (seen, stop) = (Arc::clone(&requests), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that goes away is its own matter.
                let _ = stream.and_then(|stream| answer(&hub, stream, &seen));
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            requests,
            ends,
            thread: Some(thread),
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The paths asked for, in order.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic while it is held").clone()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request; the connection ends with the answer.
fn answer(hub: &Hub, mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?.take(1 << 16)).lines();
    let path = match lines.next().transpose()? {
        Some(line) => line.split(' ').nth(1).unwrap_or_default().to_owned(),
        None => return Ok(()),
    };
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    seen.lock().expect("no panic while it is held").push(path.clone());
    let allowed = hub
        .token
        .as_ref()
        .is_none_or(|token| headers.get("authorization") == Some(&format!("Bearer {token}")));
    if !allowed {
        return respond(&mut stream, "401 Unauthorized", &[], b"");
    }
    match find(hub, &path) {
        Some(Found::List(body)) => respond(&mut stream, "200 OK", &[], body.as_bytes()),
        Some(Found::File(name, bytes)) => respond_with_file(&mut stream, name, bytes, headers.get("range")),
        None => respond(&mut stream, "404 Not Found", &[], b""),
    }
}

enum Found<'h> {
    List(String),
    File(&'h str, &'h [u8]),
}

fn find<'h>(hub: &'h Hub, path: &str) -> Option<Found<'h>> {
    for (repository, files) in &hub.repositories {
        if path == format!("/api/models/{repository}/revision/main") {
            let names = files.keys().map(|name| serde_json::json!({ "rfilename": name }));
            let list = serde_json::json!({ "siblings": names.collect::<Vec<_>>(), "sha": COMMIT });
            return Some(Found::List(list.to_string()));
        }
        if let Some(name) = path.strip_prefix(&format!("/{repository}/resolve/main/")) {
            let (name, bytes) = files.get_key_value(name)?;
            return Some(Found::File(name, bytes));
        }
    }
    None
}

fn respond_with_file(stream: &mut TcpStream, name: &str, bytes: &[u8], range: Option<&String>) -> std::io::Result<()> {
    let etag = format!("\"{}\"", blake3::hash(&[name.as_bytes(), bytes].concat()).to_hex());
    let mut headers = vec![("x-repo-commit", COMMIT.to_owned()), ("etag", etag)];
    let Some((start, end)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return respond(stream, "200 OK", &headers, bytes);
    };
    let start: usize = start.parse().unwrap_or(0);
    let end = end
        .parse::<usize>()
        .map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
    headers.push((
        "content-range",
        format!("bytes {start}-{}/{}", end.saturating_sub(1), bytes.len()),
    ));
    respond(stream, "206 Partial Content", &headers, &bytes[start.min(end)..end])
}

fn respond(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(body)
}
