//! How bytes are read from a socket into a buffer: as much as is known to be missing, with everybody else's turns in between.

use crate::env::Stream;
use bytes::BytesMut;
use std::io;

/// How much is read at once, in bytes.
pub(crate) const READ_BYTES: usize = 16 * 1024;

/// Reads more into `buffer`, of which `need` bytes are known to be missing; `Ok(false)` at the end of the stream.
///
/// The buffer's memory follows what has arrived, not what was announced. While little is in it, it is a new one each
/// time: the rest of a long request that was taken off its front would keep that request's memory. A long one ends where
/// what is missing ends: nothing short that comes after it can keep its memory.
pub(crate) async fn read_more(stream: &Stream, buffer: &mut BytesMut, need: usize) -> io::Result<bool> {
    read_some(stream, buffer, need, READ_BYTES).await.map(|read| read > 0)
}

/// How long the frames of a link are: those that came last tell what to expect of the next.
#[derive(Debug, Default)]
pub(crate) struct UsualLength {
    bytes: usize,
    /// So much has been read since others were let run.
    in_a_row: usize,
}

impl UsualLength {
    /// Notes a frame of so many bytes. Short ones among long ones change little.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.bytes = bytes.max(self.bytes / 2);
    }

    /// The same as [`read_more`] for the frames of this link: when the next one is probably long, memory for all of it is made
    /// before its first byte comes, and no more is read than it should have. So a long value need not move when it turns out
    /// to be longer than what was read first, nor what comes after it.
    pub(crate) async fn read_more(
        &mut self,
        stream: &Stream,
        buffer: &mut BytesMut,
        need: usize,
    ) -> io::Result<bool> {
        if buffer.is_empty() && (READ_BYTES + 1..=EXPECTED_BYTES_MAX).contains(&self.bytes) {
            *buffer = BytesMut::with_capacity(self.bytes);
        }
        // At the beginning of a frame nothing is known to be missing.
        let rest = if buffer.is_empty() { self.bytes } else { need };
        if rest <= READ_BYTES || buffer.capacity() - buffer.len() < rest {
            return read_more(stream, buffer, need).await;
        }
        let read = stream.read_at_most(buffer, rest.min(LINK_READ_BYTES)).await?;
        self.in_a_row += read;
        if self.in_a_row >= LINK_READ_BYTES {
            self.in_a_row = 0;
            tokio::task::yield_now().await;
        }
        Ok(read > 0)
    }
}

/// The same as [`read_more`] for a link over which much that is short may come at once, up to `short_bytes` of it; how many bytes
/// came.
pub(crate) async fn read_some(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    short_bytes: usize,
) -> io::Result<usize> {
    let length = buffer.len();
    // Memory that nothing was read into takes none; to copy a long request again and again would take long.
    let room = if length >= WHOLE_BYTES_MIN { need } else { need.min(length) }.max(short_bytes);
    if length <= READ_BYTES {
        let mut small = BytesMut::with_capacity(length + room);
        small.extend_from_slice(buffer);
        *buffer = small;
    } else {
        make_room(buffer, room).await;
    }
    let is_long = need > READ_BYTES || (need > 0 && length > READ_BYTES);
    let bytes_max = if is_long { need.min(LONG_READ_BYTES) } else { LONG_READ_BYTES };
    let read = stream.read_at_most(buffer, bytes_max).await?;
    if read >= LONG_READ_BYTES {
        tokio::task::yield_now().await;
    }
    Ok(read)
}

/// Makes room for `room` bytes more. What is there may have to move: as much of it at once as takes no time, with everybody
/// else's turns in between. A future that is dropped meanwhile has changed nothing.
async fn make_room(buffer: &mut BytesMut, room: usize) {
    if buffer.len() <= MOVED_AT_ONCE || buffer.capacity() - buffer.len() >= room {
        buffer.reserve(room);
        return;
    }
    // Twice as much at least, so that each byte is moved once, about.
    let mut larger = BytesMut::with_capacity((buffer.len() + room).max(2 * buffer.len()));
    for part in buffer.chunks(MOVED_AT_ONCE) {
        larger.extend_from_slice(part);
        tokio::task::yield_now().await;
    }
    *buffer = larger;
}

/// So many bytes are moved in one turn.
const MOVED_AT_ONCE: usize = 512 * 1024;

/// No more of a long request is read at once, and after that a connection lets others run, even if more is there: many
/// that bring long values at once would else hold up everybody, timers too.
const LONG_READ_BYTES: usize = 64 * 1024;

/// The same for a link, of which there are few, over which long values come one after the other.
const LINK_READ_BYTES: usize = 256 * 1024;

/// For no longer frames memory is made before they come.
const EXPECTED_BYTES_MAX: usize = 2 << 20;

/// With so many bytes of a request there, room is made for all of it.
const WHOLE_BYTES_MIN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::RealEnv;

    const FRAME_BYTES: usize = 300_000;

    async fn link() -> (Stream, Stream) {
        let env = RealEnv::new();
        let listener = env.listen("127.0.0.1:0").await.unwrap();
        let near = env.connect(&listener.local_address().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, far)
    }

    #[tokio::test]
    async fn memory_for_a_frame_that_is_as_long_as_the_last_one_is_made_once() {
        let (near, far) = link().await;
        let (mut usual, mut buffer) = (UsualLength::default(), BytesMut::new());
        usual.note(FRAME_BYTES);
        let reading = async {
            for mark in 0..10_u8 {
                assert!(usual.read_more(&near, &mut buffer, 0).await.unwrap());
                let place = buffer.as_ptr();
                while buffer.len() < FRAME_BYTES {
                    let need = FRAME_BYTES - buffer.len();
                    assert!(usual.read_more(&near, &mut buffer, need).await.unwrap());
                }
                assert_eq!(buffer.as_ptr(), place, "it has moved");
                assert!(buffer.iter().all(|byte| *byte == mark), "the next one's bytes, too");
                // The value is kept by somebody else.
                let value = buffer.split().freeze();
                usual.note(value.len());
            }
        };
        let writing = async {
            for mark in 0..10_u8 {
                far.write_all(&[mark; FRAME_BYTES]).await.unwrap();
            }
        };
        tokio::join!(reading, writing);
    }

    #[tokio::test]
    async fn short_frames_are_read_together_soon_after_a_long_one() {
        let (near, far) = link().await;
        let (mut usual, mut buffer) = (UsualLength::default(), BytesMut::new());
        usual.note(FRAME_BYTES);
        (0..10).for_each(|_| usual.note(20));
        far.write_all(&[0; 10_000]).await.unwrap();
        assert!(usual.read_more(&near, &mut buffer, 0).await.unwrap());
        assert!(buffer.capacity() < FRAME_BYTES, "{} bytes of memory", buffer.capacity());
        assert_eq!(buffer.len(), 10_000);
    }
}
