"""What every process of either package needs: options, limits, whole files, an end."""
