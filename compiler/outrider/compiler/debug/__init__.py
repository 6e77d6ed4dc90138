"""Where a compiled network leaves its source: tensor by tensor, or part by part."""
