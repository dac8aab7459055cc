"""From samples to a Selection: finalists, one ``block_m`` per MoE layer, rows between rows."""
