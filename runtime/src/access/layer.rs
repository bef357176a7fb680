//! The rules as a tower layer, the same for gRPC and for HTTP.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header::AUTHORIZATION};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    guard::{Access, Presented},
    guarded_body::{GuardedBody, Guards},
    refused,
};
use crate::door::ConnInfo;

#[derive(Clone, Debug)]
pub struct AccessLayer(Arc<Access>);

impl AccessLayer {
    pub(crate) fn new(access: Arc<Access>) -> Self {
        Self(access)
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService {
            access: Arc::clone(&self.0),
            inner,
        }
    }
}

/// Puts a [`Principal`](super::Principal) into requests of somebody known, and answers those that are refused.
#[derive(Clone, Debug)]
pub struct AccessService<S> {
    access: Arc<Access>,
    inner: S,
}

impl<S, A, B> Service<Request<A>> for AccessService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: Send + 'static,
{
    type Response = Response<GuardedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let conn = request.extensions().get::<ConnInfo>().cloned();
        let checked = self
            .access
            .check(request.uri().path(), request.headers(), conn.as_ref());
        let admitted = match checked {
            Ok(admitted) => admitted,
            Err(denied) => {
                let response = refused::response(&denied, request.headers());
                return Box::pin(async move { Ok(response) });
            }
        };
        if let Some(principal) = admitted.principal {
            request.extensions_mut().insert(principal);
        }
        if let Some(presented) = request.headers().get(AUTHORIZATION).cloned() {
            request.extensions_mut().insert(Presented(presented));
        }
        let guards = Guards {
            counted: admitted.counted,
            open: conn.map(|conn| conn.activity.request()),
        };
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?;
            Ok(response.map(|body| GuardedBody::answer(body, guards)))
        })
    }
}
