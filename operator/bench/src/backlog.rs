//! From a backlog to pods, with a scheduler that only talks.

use std::net::SocketAddr;
use std::time::Instant;

use oxidask_fake_api::FakeScheduler;
use serde_json::json;
use tokio::net::TcpListener;

use crate::figure::Figure;
use crate::stage::{NAMESPACE, Stage, cluster};
use crate::{Failure, Settings};

/// Workers that the backlog needs.
const WANTED: u64 = 8;

/// Until the operator has met the scheduler.
const MEETS_IN: std::time::Duration = std::time::Duration::from_secs(3);

/// From the telemetry that says so until the API server has all pods that the backlog needs.
pub(crate) async fn measure(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let mut seconds = Vec::new();
    for _ in 0..settings.runs {
        let stage = Stage::new(settings).await?;
        let address: SocketAddr = {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            listener.local_addr()?
        };
        let flag = [
            "--scheduler-address-template".to_owned(),
            address.to_string(),
        ];
        let _operator = stage.operator(&flag).await?;
        let mut manifest = cluster("c", 0);
        let worker = &mut manifest["spec"]["worker"];
        worker["autoscale"] = json!({"minimum": 0, "maximum": WANTED});
        if let Some(worker) = worker.as_object_mut() {
            worker.remove("replicas");
        }
        stage.fake.create(manifest)?;
        let scheduler = FakeScheduler::start(&stage.fake, (NAMESPACE, "c"), address).await?;
        scheduler.want("default", 0);
        tokio::time::sleep(MEETS_IN).await;
        stage.until_silent().await?;
        let start = Instant::now();
        scheduler.want("default", WANTED);
        let wanted = usize::try_from(WANTED)?;
        stage
            .until("no pods came", || stage.workers("c") == wanted)
            .await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let what = format!("backlog change to {WANTED} pods requested");
    Ok(vec![Figure::new(what, "1 s", "s", seconds)])
}
