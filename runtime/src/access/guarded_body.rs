//! The body of a response: a refusal's few bytes, or what a service answers. While it lasts, the request counts.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::usage::OpenUse;
use crate::door::OpenRequest;

#[derive(Debug)]
pub struct GuardedBody<B>(Inner<B>);

#[derive(Debug)]
enum Inner<B> {
    /// Boxed, so that it can be pinned without unsafe code.
    Answer(Pin<Box<B>>, #[allow(dead_code)] Guards),
    Whole(Option<Bytes>),
}

/// What ends with the body: nobody reads them.
#[derive(Debug, Default)]
#[allow(dead_code)]
pub(super) struct Guards {
    pub counted: Option<OpenUse>,
    pub open: Option<OpenRequest>,
}

impl<B> GuardedBody<B> {
    pub(super) fn answer(body: B, guards: Guards) -> Self {
        Self(Inner::Answer(Box::pin(body), guards))
    }

    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Inner::Whole(Some(bytes)))
    }
}

impl<B> Default for GuardedBody<B> {
    fn default() -> Self {
        Self(Inner::Whole(None))
    }
}

impl<B: Body<Data = Bytes>> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.get_mut().0 {
            Inner::Answer(body, _) => body.as_mut().poll_frame(context),
            Inner::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Answer(body, _) => body.is_end_stream(),
            Inner::Whole(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Answer(body, _) => body.size_hint(),
            Inner::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
