//! Messages from the network: what is parsed is what was sent, and says the same when it is sent on.
//!
//! The first byte of an input chooses the message.

#![no_main]

use kvasir_fuzz::memory;
use kvasir_proto::{
    convert::{self, Arrival},
    v1,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    memory::bounded(bytes.len(), || match kind % 4 {
        0 => from_worker(bytes),
        1 => to_worker(bytes),
        2 => survives_the_wire::<v1::GenerateRequest>(bytes),
        _ => survives_the_wire::<v1::GenerateResponse>(bytes),
    });
});

fn from_worker(bytes: &[u8]) {
    let Ok(message) = v1::FromWorker::decode(bytes) else {
        return;
    };
    let sent = message.encode_to_vec();
    let sent_on = match convert::parse_from_worker(message) {
        Ok(Arrival::Hello(info)) => convert::hello(&info),
        Ok(Arrival::Message(message)) => convert::from_worker(message),
        Ok(Arrival::Superseded(by)) => convert::superseded(by),
        Err(_) => return,
    };
    assert_eq!(sent_on.encode_to_vec(), sent);
}

fn to_worker(bytes: &[u8]) {
    let Ok(mut message) = v1::ToWorker::decode(bytes) else {
        return;
    };
    // A step's trace is for the worker, not for its rank.
    if let Some(v1::to_worker::Message::Step(step)) = &mut message.message {
        step.traceparent.clear();
    }
    let sent = message.encode_to_vec();
    if let Ok(parsed) = convert::parse_to_worker(message) {
        assert_eq!(convert::to_worker(parsed).encode_to_vec(), sent);
    }
}

/// Bytes are compared, not messages: a NaN is not equal to itself.
fn survives_the_wire<M: Message + Default>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else {
        return;
    };
    let sent = message.encode_to_vec();
    let received = M::decode(sent.as_slice()).expect("what was encoded can be decoded");
    assert_eq!(received.encode_to_vec(), sent);
}
