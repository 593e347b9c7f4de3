//! Functions in the bytes of a stage: by name, the built-in ones only.
//!
//! Owns the way from a name to a function that follows the query's options, such as its time zone.

use std::fmt;
use std::sync::Arc;

use datafusion::common::{Result, not_impl_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, WindowUDF};
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

/// The functions of a build under the options of a query.
#[derive(Clone)]
pub(super) struct Functions {
    state: SessionState,
    options: Arc<ConfigOptions>,
}

impl Functions {
    pub(super) fn new(state: SessionState, options: Arc<ConfigOptions>) -> Self {
        Self { state, options }
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").finish_non_exhaustive()
    }
}

fn known<T>(function: Option<T>, name: &str) -> Result<T> {
    if let Some(function) = function {
        return Ok(function);
    }
    not_impl_err!("the function `{name}` is not built in")
}

impl PhysicalExtensionCodec for Functions {
    fn try_decode(
        &self,
        _: &[u8],
        _: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        not_impl_err!("an unknown operator in the bytes of a stage")
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        _: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        not_impl_err!("the operator `{}` stays in one task", node.name())
    }

    fn try_decode_udf(&self, name: &str, _: &[u8]) -> Result<Arc<ScalarUDF>> {
        let function = known(self.state.scalar_functions().get(name), name)?;
        Ok(match function.inner().with_updated_config(&self.options) {
            Some(updated) => Arc::new(updated),
            None => Arc::clone(function),
        })
    }

    fn try_encode_udf(&self, node: &ScalarUDF, _: &mut Vec<u8>) -> Result<()> {
        known(self.state.scalar_functions().get(node.name()), node.name()).map(drop)
    }

    fn try_decode_higher_order_function(
        &self,
        name: &str,
        _: &[u8],
    ) -> Result<Arc<HigherOrderUDF>> {
        known(self.state.higher_order_functions().get(name), name).cloned()
    }

    fn try_decode_udaf(&self, name: &str, _: &[u8]) -> Result<Arc<AggregateUDF>> {
        known(self.state.aggregate_functions().get(name), name).cloned()
    }

    fn try_encode_udaf(&self, node: &AggregateUDF, _: &mut Vec<u8>) -> Result<()> {
        known(
            self.state.aggregate_functions().get(node.name()),
            node.name(),
        )
        .map(drop)
    }

    fn try_decode_udwf(&self, name: &str, _: &[u8]) -> Result<Arc<WindowUDF>> {
        known(self.state.window_functions().get(name), name).cloned()
    }

    fn try_encode_udwf(&self, node: &WindowUDF, _: &mut Vec<u8>) -> Result<()> {
        known(self.state.window_functions().get(node.name()), node.name()).map(drop)
    }
}
