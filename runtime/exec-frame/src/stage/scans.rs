//! Scans in the bytes of a stage.
//!
//! Owns what a scan loses on the way through the engine's own bytes, and the files of each part: a
//! task is given its own files only, so ten thousand parts do not cost ten thousand groups each.
//! Statistics stay behind, except where an ordering depends on them: plans are made already.

use std::str::FromStr;
use std::sync::Arc;

use datafusion::common::{Result, Statistics, not_impl_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{
    CsvSource, FileGroup, FileScanConfig, FileScanConfigBuilder,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::protobuf;
use datafusion_proto::protobuf::physical_plan_node::PhysicalPlanType;

use super::codec::broken;

/// The files of a scan, and what the engine's bytes do not hold.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ScanFiles {
    /// One a part.
    #[prost(message, repeated, tag = "1")]
    groups: Vec<protobuf::FileGroup>,
    #[prost(string, tag = "2")]
    compression: String,
    /// The byte that ends a line of CSV, if it is a special one.
    #[prost(uint32, optional, tag = "3")]
    terminator: Option<u32>,
}

/// The scan without its files, and its files. `None` if the node is no scan of files.
pub(super) fn split(
    plan: &Arc<dyn ExecutionPlan>,
) -> Result<Option<(Arc<dyn ExecutionPlan>, ScanFiles)>> {
    let scan = plan.downcast_ref::<DataSourceExec>();
    let scan = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
    let Some(scan) = scan else {
        return Ok(None);
    };
    let source = scan.file_source();
    let keeps_statistics = !scan.output_ordering.is_empty();
    let files = scan.file_groups.iter().map(|group| {
        let files = group.iter().map(|file| bare(file, keeps_statistics));
        protobuf::FileGroup::try_from(&FileGroup::new(files.collect::<Result<_>>()?))
    });
    let groups = files.collect::<Result<Vec<_>>>()?;
    let terminator = source
        .downcast_ref::<CsvSource>()
        .and_then(CsvSource::terminator);
    let files = ScanFiles {
        groups,
        compression: scan.file_compression_type.get_variant().to_string(),
        terminator: terminator.map(u32::from),
    };
    let mut builder = FileScanConfigBuilder::from(scan.clone())
        .with_file_groups(Vec::new())
        .with_output_partitioning(None);
    if !keeps_statistics {
        let schema = scan.file_source().table_schema().table_schema();
        builder = builder.with_statistics(Statistics::new_unknown(schema));
    }
    Ok(Some((
        DataSourceExec::from_data_source(builder.build()),
        files,
    )))
}

/// A file without what is known of its content.
fn bare(file: &PartitionedFile, keeps_statistics: bool) -> Result<PartitionedFile> {
    if !file.extensions.is_empty() {
        return not_impl_err!("a file with extensions is read by one task");
    }
    let mut bare = file.clone();
    if !keeps_statistics {
        bare.statistics = None;
    }
    Ok(bare)
}

/// Where a scan in the engine's bytes keeps its files.
fn base(node: &mut protobuf::PhysicalPlanNode) -> Option<&mut protobuf::FileScanExecConf> {
    match node.physical_plan_type.as_mut()? {
        PhysicalPlanType::ParquetScan(scan) => scan.base_conf.as_mut(),
        PhysicalPlanType::CsvScan(scan) => scan.base_conf.as_mut(),
        PhysicalPlanType::JsonScan(scan) => scan.base_conf.as_mut(),
        PhysicalPlanType::ArrowScan(scan) => scan.base_conf.as_mut(),
        _ => None,
    }
}

/// Whether the node is a scan of files.
pub(super) fn is_scan(node: &protobuf::PhysicalPlanNode) -> bool {
    matches!(
        node.physical_plan_type,
        Some(
            PhysicalPlanType::ParquetScan(_)
                | PhysicalPlanType::CsvScan(_)
                | PhysicalPlanType::JsonScan(_)
                | PhysicalPlanType::ArrowScan(_)
        )
    )
}

/// Writes the number of a scan where its files would be.
pub(super) fn number(node: &mut protobuf::PhysicalPlanNode, number: usize) -> Result<()> {
    let base = base(node).ok_or_else(|| broken("a scan"))?;
    let file = protobuf::PartitionedFile {
        size: number as u64,
        ..protobuf::PartitionedFile::default()
    };
    base.file_groups = vec![protobuf::FileGroup { files: vec![file] }];
    Ok(())
}

/// The scan with the files of one part, and the number under which they stand.
pub(super) fn for_part(
    node: &protobuf::PhysicalPlanNode,
    scans: &[ScanFiles],
    part: usize,
) -> Result<(protobuf::PhysicalPlanNode, usize)> {
    let mut node = node.clone();
    let base = base(&mut node).ok_or_else(|| broken("a scan"))?;
    let number = base
        .file_groups
        .first()
        .and_then(|group| group.files.first());
    let number = number.and_then(|file| usize::try_from(file.size).ok());
    let number = number.ok_or_else(|| broken("the number of a scan"))?;
    let files = scans.get(number).and_then(|scan| scan.groups.get(part));
    let files = files.ok_or_else(|| broken("the files of a scan"))?;
    base.file_groups = vec![files.clone()];
    Ok((node, number))
}

/// Gives a scan what the engine's bytes do not hold.
pub(super) fn completed(
    plan: Arc<dyn ExecutionPlan>,
    files: &ScanFiles,
) -> Result<Arc<dyn ExecutionPlan>> {
    if files.compression.is_empty() && files.terminator.is_none() {
        return Ok(plan);
    }
    let scan = plan.downcast_ref::<DataSourceExec>();
    let scan = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
    let scan = scan.ok_or_else(|| broken("a scan"))?;
    let compression = FileCompressionType::from_str(&files.compression)?;
    let mut builder =
        FileScanConfigBuilder::from(scan.clone()).with_file_compression_type(compression);
    let terminator = files.terminator.and_then(|byte| u8::try_from(byte).ok());
    if let (Some(csv), Some(terminator)) =
        (scan.file_source().downcast_ref::<CsvSource>(), terminator)
    {
        builder = builder.with_source(Arc::new(csv.with_terminator(Some(terminator))));
    }
    Ok(DataSourceExec::from_data_source(builder.build()))
}
