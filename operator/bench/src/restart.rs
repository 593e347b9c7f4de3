//! A restart with many clusters, one of which has changed meanwhile.

use std::time::Instant;

use crate::figure::Figure;
use crate::stage::Stage;
use crate::{Failure, Settings};

const CLUSTERS: usize = 1000;

/// From the start of the process to the first right decision, which is the missing pods of the
/// cluster that was scaled while nobody looked.
pub(crate) async fn measure(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let clusters = settings.size(CLUSTERS);
    let stage = Stage::new(settings).await?;
    let mut operator = stage.operator(&[]).await?;
    let names: Vec<String> = (0..clusters).map(|n| format!("c{n:04}")).collect();
    for name in &names {
        stage.create(name, 2)?;
    }
    let all_ready = || names.iter().all(|name| stage.is_ready(name, 2));
    stage.until("not all became ready", all_ready).await?;
    stage.until_silent().await?;
    let (mut seconds, mut writes) = (Vec::new(), 0);
    for run in 0..settings.runs {
        operator.kill().await?;
        let run = usize::try_from(run).unwrap_or_default();
        let name = &names[(clusters * 2 / 3 + run) % clusters];
        stage.scale(name, 4)?;
        stage.fake.forget_calls();
        let start = Instant::now();
        operator = stage.operator_at_once().await?;
        stage
            .until("no decision", || stage.workers(name) == 4)
            .await?;
        seconds.push(start.elapsed().as_secs_f64());
        stage.until_silent().await?;
        writes = stage.fake.calls().writes_but("Lease");
    }
    let what = format!("restart with {clusters} clusters to the first right decision");
    let note = format!("{writes} writes until silence, for the one cluster that had changed");
    Ok(vec![Figure::new(what, "5 s", "s", seconds).note(note)])
}
