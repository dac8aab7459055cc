"""From samples to a Selection: finalists, one ``block_m`` for a MoE layer, rows between."""
