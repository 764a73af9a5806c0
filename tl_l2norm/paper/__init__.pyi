from .figures import draw_analysis as draw_analysis
from .report import analysis_report as analysis_report
from .stages import Analysis as Analysis
