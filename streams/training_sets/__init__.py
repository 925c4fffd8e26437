"""The rolling training sets: decoded events in immutable segments, folded into examples on demand."""
