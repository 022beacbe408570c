//! The text of the lock file: any text is read, and what was read comes back.

use dsm_protocol::ids::{ClusterId, Epoch, ReignId};
use dsm_protocol::lock_file::LockText;

/// Takes the bytes as text.
pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = LockText::parse(&text);
    let written = read.to_string();
    assert!(written.len() <= text.len() + 128, "the text grows");
    // A CR before a line feed belongs to the line end, so a value that ends in two of them loses one each time.
    if !text.contains('\r') {
        assert_eq!(LockText::parse(&written), read, "{written:?} does not come back");
    }
}

/// What masters write.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let whole = LockText {
        pid: Some(4242),
        start: Some(123_456),
        boot: Some("0b0a0f9c-6a0e-4c3e-9d5a-7c1f1f5b7f10".to_owned()),
        pid_ns: Some("4026531836".to_owned()),
        address: Some("127.0.0.1:12345".to_owned()),
        cluster: Some(ClusterId(0x7f3a_9c0e_51d2_4b88)),
        epoch: Some(Epoch(9)),
        reign: Some(ReignId(0x2c1f_88d0_4be7_93a6)),
        log_boot: Some("0b0a0f9c-6a0e-4c3e-9d5a-7c1f1f5b7f10".to_owned()),
    };
    let taken = LockText { cluster: None, epoch: None, reign: None, log_boot: None, ..whole.clone() };
    let mut garbled = whole.to_string().into_bytes();
    garbled[20..60].fill(0);
    vec![whole.to_string().into_bytes(), taken.to_string().into_bytes(), garbled]
}
