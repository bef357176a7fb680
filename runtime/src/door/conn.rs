//! An accepted connection: plain or encrypted, with its peer, and with an end if it says nothing.
//!
//! The first words of HTTP must be there soon, or it is cut off, however its bytes dribble; what comes after is bounded by
//! the protocols above (header timeouts, keepalive pings). One that carries no request for long is closed as well: pings
//! alone keep nobody's seat for ever.
//!
//! Answers that share a connection leave together: a step gives a token to each, and a write of its own for each token was a
//! quarter of what a coordinator does for it, and half of what its client does.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{Activity, seats::Seat};
use crate::{
    refusals::{Refusal, Refusals},
    tls::Identity,
};

/// HTTP/2 begins with its preface of so many bytes.
const PREFACE_BYTES: usize = 24;
/// A line of HTTP/1 has no less than these; its reader has a deadline of its own for the rest.
const LINE_BYTES: usize = 16;

/// What is known of a request's connection; an extension of each request.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    pub peer: SocketAddr,
    /// By its certificate.
    pub identity: Option<Identity>,
    pub encrypted: bool,
    pub activity: Arc<Activity>,
}

#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    info: ConnInfo,
    watch: Watch,
    /// Since the last flush; see `poll_gather`.
    gathered: bool,
    _seat: Seat,
}

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the connection is waited for.
#[derive(Debug)]
struct Watch {
    timer: Pin<Box<Sleep>>,
    /// The first two.
    begin: [u8; 2],
    num_read: usize,
    spoke: bool,
    first_words_max: Duration,
    idle_max: Duration,
    refusals: Arc<Refusals>,
}

impl Conn {
    pub(super) fn new(
        stream: Stream,
        peer: SocketAddr,
        identity: Option<Identity>,
        seat: Seat,
        limits: super::ConnLimits,
        refusals: Arc<Refusals>,
    ) -> Self {
        let info = ConnInfo {
            peer,
            identity,
            encrypted: matches!(stream, Stream::Tls(_)),
            activity: Arc::default(),
        };
        let watch = Watch {
            timer: Box::pin(tokio::time::sleep(limits.first_words_max)),
            begin: [0; 2],
            num_read: 0,
            spoke: false,
            first_words_max: limits.first_words_max,
            idle_max: limits.idle_max,
            refusals,
        };
        Self {
            stream,
            info,
            watch,
            gathered: false,
            _seat: seat,
        }
    }

    pub fn info(&self) -> &ConnInfo {
        &self.info
    }

    /// Once before each flush of a connection with several open requests: lets tasks run that are ready to, such as those of
    /// the other answers. What they have to say is written with the rest, since HTTP/2 asks again for all it has. A
    /// connection with one request, like a worker's, never waits.
    fn poll_gather(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.gathered || !self.info.activity.is_shared() {
            return Poll::Ready(());
        }
        self.gathered = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Watch {
    fn read(&mut self, bytes: &[u8]) {
        if self.spoke {
            return;
        }
        for (place, byte) in self.begin.iter_mut().skip(self.num_read).zip(bytes) {
            *place = *byte;
        }
        self.num_read += bytes.len();
        // No method of HTTP/1 begins so.
        let is_preface = self.begin == *b"PR";
        self.spoke = self.num_read >= if is_preface { PREFACE_BYTES } else { LINE_BYTES };
        if self.spoke {
            self.timer.as_mut().reset(Instant::now() + self.idle_max);
        }
    }

    /// Errors once it has been waited for long enough.
    fn poll(&mut self, info: &ConnInfo, context: &mut Context<'_>) -> Poll<io::Error> {
        while self.timer.as_mut().poll(context).is_ready() {
            if !self.spoke {
                let waited = self.first_words_max.as_secs();
                let why = format!("{} bytes of a first line within {waited} s", self.num_read);
                self.refusals.refuse(Refusal::SlowConnection, info.peer, why);
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            let left = self.idle_max.saturating_sub(info.activity.idle());
            if left.is_zero() {
                tracing::debug!(peer = %info.peer, "idle connection closed");
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(Instant::now() + left);
        }
        Poll::Pending
    }
}

impl Connected for Conn {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Before reading: bytes that dribble in are no excuse.
        if let Poll::Ready(error) = this.watch.poll(&this.info, context) {
            return Poll::Ready(Err(error));
        }
        let filled = buffer.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        };
        if matches!(read, Poll::Ready(Ok(()))) {
            this.watch.read(&buffer.filled()[filled..]);
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_gather(context));
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_gather(context));
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.gathered = false;
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::door::{Door, DoorConfig};

    async fn accepted() -> (Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let door = Door::open(&DoorConfig::default()).unwrap();
        let conn = door.incoming(listener, &["h2"]).unwrap().next().await.unwrap();
        (conn.unwrap(), client)
    }

    /// Whether it waits once more for what others have to say.
    async fn waits(conn: &mut Conn, bytes: &'static [u8]) -> bool {
        poll_fn(|context| {
            let write = Pin::new(&mut *conn).poll_write_vectored(context, &[io::IoSlice::new(bytes)]);
            if let Poll::Ready(written) = &write {
                assert_eq!(*written.as_ref().unwrap(), bytes.len());
            }
            Poll::Ready(write.is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn answers_on_one_connection_are_gathered_once_a_flush() {
        let (mut conn, mut client) = accepted().await;
        let activity = Arc::clone(&conn.info.activity);
        let first = activity.request();
        assert!(!waits(&mut conn, b"alone ").await);
        conn.flush().await.unwrap();
        let second = activity.request();
        for _ in 0..2 {
            assert!(waits(&mut conn, b"not written").await);
            assert!(!waits(&mut conn, b"together ").await);
            assert!(!waits(&mut conn, b"still ").await);
            conn.flush().await.unwrap();
        }
        // It has woken itself: nothing else comes that would.
        conn.write_all(b"woken ").await.unwrap();
        conn.flush().await.unwrap();
        drop((first, second));
        assert!(!waits(&mut conn, b"none").await);
        conn.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "alone together still together still woken none");
    }
}
