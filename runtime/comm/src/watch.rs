//! Peers that vanish: a machine that loses its power or its link sends no goodbye.
//!
//! Owns the settings by which the system itself notices. A process that is only slow is never cut by
//! them: its system answers for it.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the system asks whether the peer is there.
const SILENCE: Duration = Duration::from_secs(1);
/// Time between questions.
const INTERVAL: Duration = Duration::from_secs(1);
/// Questions without an answer: the connection breaks [`VANISHED_TIME`] after the last sign.
const QUESTIONS: u32 = 2;
/// How long a vanished peer goes unnoticed.
const VANISHED_TIME: Duration = Duration::from_secs(3);
/// The same at the side that accepts, which only has to tidy up.
const SILENCE_ACCEPTED: Duration = Duration::from_secs(15);

/// For a connection on which this side waits for what the other one says.
pub(crate) fn watch_peer(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_tcp_keepalive(&questions(SILENCE))
}

/// For a connection that was accepted.
pub(crate) fn watch_caller(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_tcp_keepalive(&questions(SILENCE_ACCEPTED))
}

/// For a connection whose other side reads all the time, in addition: what was sent must arrive.
/// Not for bulk data, which a peer may leave unread for a while.
pub(crate) fn watch_reader(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_tcp_user_timeout(Some(VANISHED_TIME))
}

fn questions(silence: Duration) -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(silence)
        .with_interval(INTERVAL)
        .with_retries(QUESTIONS)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_system_notices_in_three_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        watch_peer(&tcp).unwrap();
        watch_reader(&tcp).unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        let (silence, interval) = (
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
        );
        let questions = socket.tcp_keepalive_retries().unwrap();
        assert_eq!(silence + interval * questions, VANISHED_TIME);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED_TIME));
        let (accepted, _) = listener.accept().await.unwrap();
        watch_caller(&accepted).unwrap();
        assert!(SockRef::from(&accepted).keepalive().unwrap());
    }
}
