"""One module for each agent framework or guardrail library, imported only where it is asked for."""
