//! What a stage's consumer may rely on about the rows it reads.
//!
//! Owns the part of a plan's equivalence properties that survives a cut: orderings, constants and
//! equal expressions, as long as they can be written down. A consumer that lost an ordering would
//! not be planned again: its aggregates would silently work in another order than its parents
//! expect. So what is written is also what the cut plan itself is given.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::equivalence::{AcrossPartitions, ConstExpr, EquivalenceProperties};
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::scalar::ScalarValue;
use datafusion_proto::protobuf;

use super::codec::{Expressions, broken};

/// Orderings, constants and equal expressions of a leaf's rows.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RowProperties {
    #[prost(message, repeated, tag = "1")]
    orderings: Vec<protobuf::PhysicalSortExprNodeCollection>,
    #[prost(message, repeated, tag = "2")]
    classes: Vec<EqualExpressions>,
    #[prost(message, repeated, tag = "3")]
    constants: Vec<Constant>,
}

/// Expressions that are equal in every row.
#[derive(Clone, PartialEq, prost::Message)]
struct EqualExpressions {
    #[prost(message, repeated, tag = "1")]
    expressions: Vec<protobuf::PhysicalExprNode>,
}

/// An expression that is the same in all rows of a partition.
#[derive(Clone, PartialEq, prost::Message)]
struct Constant {
    #[prost(message, optional, tag = "1")]
    expression: Option<protobuf::PhysicalExprNode>,
    /// Also between partitions.
    #[prost(bool, tag = "2")]
    is_uniform: bool,
    #[prost(message, optional, tag = "3")]
    value: Option<protobuf::ScalarValue>,
}

/// Whether an expression reads the value of a scalar subquery: it means nothing elsewhere.
pub(super) fn reads_subquery(expression: &Arc<dyn PhysicalExpr>) -> bool {
    let mut found = false;
    let walked = expression.apply(|inner| {
        found |= inner.downcast_ref::<ScalarSubqueryExpr>().is_some();
        Ok(if found {
            TreeNodeRecursion::Stop
        } else {
            TreeNodeRecursion::Continue
        })
    });
    found || walked.is_err()
}

/// The properties without what cannot leave its stage.
pub(super) fn portable(
    properties: &EquivalenceProperties,
    schema: &SchemaRef,
) -> Result<EquivalenceProperties> {
    let mut portable = EquivalenceProperties::new(Arc::clone(schema));
    for class in properties.eq_group().iter() {
        let kept = class.iter().filter(|member| !reads_subquery(member));
        add_class(&mut portable, kept.cloned())?;
    }
    let constants = properties.constants().into_iter();
    portable.add_constants(constants.filter(|constant| !reads_subquery(&constant.expr)))?;
    let orderings = properties.oeq_class().iter();
    portable.add_orderings(
        orderings
            .filter(|ordering| !ordering.iter().any(|sort| reads_subquery(&sort.expr)))
            .cloned(),
    );
    Ok(portable)
}

fn add_class(
    properties: &mut EquivalenceProperties,
    mut members: impl Iterator<Item = Arc<dyn PhysicalExpr>>,
) -> Result<()> {
    let Some(first) = members.next() else {
        return Ok(());
    };
    members.try_for_each(|member| properties.add_equal_conditions(Arc::clone(&first), member))
}

/// Writes properties down.
pub(super) fn encode(
    properties: &EquivalenceProperties,
    expressions: &dyn Expressions,
) -> Result<RowProperties> {
    let orderings = properties.oeq_class().iter().map(|ordering| {
        let sorts = ordering.iter().map(|sort| encode_sort(sort, expressions));
        Ok(protobuf::PhysicalSortExprNodeCollection {
            physical_sort_expr_nodes: sorts.collect::<Result<_>>()?,
        })
    });
    let groups = properties.eq_group().iter();
    let classes = groups.filter(|class| class.len() > 1).map(|class| {
        let members = class.iter().map(|member| expressions.encode(member));
        Ok(EqualExpressions {
            expressions: members.collect::<Result<_>>()?,
        })
    });
    let constants = properties.constants().into_iter().map(|constant| {
        let (is_uniform, value) = match &constant.across_partitions {
            AcrossPartitions::Heterogeneous => (false, None),
            AcrossPartitions::Uniform(value) => (true, value.as_ref()),
        };
        Ok(Constant {
            expression: Some(expressions.encode(&constant.expr)?),
            is_uniform,
            value: value.map(TryInto::try_into).transpose()?,
        })
    });
    Ok(RowProperties {
        orderings: orderings.collect::<Result<_>>()?,
        classes: classes.collect::<Result<_>>()?,
        constants: constants.collect::<Result<_>>()?,
    })
}

/// Writes a sort expression down.
pub(super) fn encode_sort(
    sort: &PhysicalSortExpr,
    expressions: &dyn Expressions,
) -> Result<protobuf::PhysicalSortExprNode> {
    Ok(protobuf::PhysicalSortExprNode {
        expr: Some(Box::new(expressions.encode(&sort.expr)?)),
        asc: !sort.options.descending,
        nulls_first: sort.options.nulls_first,
    })
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(
    written: &RowProperties,
    schema: &SchemaRef,
    expressions: &dyn Expressions,
) -> Result<EquivalenceProperties> {
    let mut properties = EquivalenceProperties::new(Arc::clone(schema));
    for class in &written.classes {
        let members = class.expressions.iter();
        let members = members.map(|member| expressions.decode(member, schema));
        let members = members.collect::<Result<Vec<_>>>()?;
        add_class(&mut properties, members.into_iter())?;
    }
    let constants = written.constants.iter().map(|constant| {
        let expression = constant.expression.as_ref();
        let expression = expression.ok_or_else(|| broken("a constant"))?;
        let value = constant.value.as_ref().map(ScalarValue::try_from);
        let across = if constant.is_uniform {
            AcrossPartitions::Uniform(value.transpose()?)
        } else {
            AcrossPartitions::Heterogeneous
        };
        Ok(ConstExpr::new(
            expressions.decode(expression, schema)?,
            across,
        ))
    });
    let constants = constants.collect::<Result<Vec<_>>>()?;
    if !constants.is_empty() {
        properties.add_constants(constants)?;
    }
    for ordering in &written.orderings {
        let sorts = ordering.physical_sort_expr_nodes.iter();
        let sorts = sorts.map(|sort| decode_sort(sort, schema, expressions));
        if let Some(ordering) = LexOrdering::new(sorts.collect::<Result<Vec<_>>>()?) {
            properties.add_ordering(ordering);
        }
    }
    Ok(properties)
}

fn decode_sort(
    sort: &protobuf::PhysicalSortExprNode,
    schema: &Schema,
    expressions: &dyn Expressions,
) -> Result<PhysicalSortExpr> {
    let expression = sort.expr.as_ref().ok_or_else(|| broken("a sort"))?;
    Ok(PhysicalSortExpr::new(
        expressions.decode(expression, schema)?,
        datafusion::arrow::compute::SortOptions {
            descending: !sort.asc,
            nulls_first: sort.nulls_first,
        },
    ))
}
