"""Metrics per domain and per subpopulation."""
